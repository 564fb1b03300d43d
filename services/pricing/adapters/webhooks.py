"""Alerts told to webhooks: signed, at least once, and again until somebody took them.

Standard Webhooks (https://www.standardwebhooks.com, 1.0): `webhook-id` is the
alert's and the same each time; `webhook-timestamp` is of the attempt;
`webhook-signature` is `v1,` and base64 of HMAC-SHA256 over id, timestamp and
body, joined by dots. What is to be told is in the database: whoever dies over
an attempt leaves it there for the next. Only the addresses of the file are
called; a redirection is a failure, and no proxy of the environment is used.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import time
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import httpx
import structlog

from kernel.dsn import said
from pricing.adapters import database
from pricing.adapters.alert_rules import Webhook

log = structlog.get_logger()

_AT_ONCE: Final = 16
_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 0.5
_AWAY_S: Final = 2.0
FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 3_600.0
MOST_ATTEMPTS: Final = 48
"""Some 36 hours; then an alert is given up, which is an error in the log."""

_DUE: Final = (
    "SELECT d.alert_id, d.attempts, a.body FROM alert_delivery d JOIN alert a USING (alert_id)"
    " WHERE d.webhook = $1 AND d.done_at IS NULL AND d.due_at <= now()"
    " ORDER BY d.due_at, d.alert_id LIMIT $2 FOR UPDATE OF d SKIP LOCKED"
)
_DONE: Final = (
    "UPDATE alert_delivery SET attempts = $3, done_at = now(), last_error = $4"
    " WHERE alert_id = $1 AND webhook = $2"
)
_LATER: Final = (
    "UPDATE alert_delivery SET attempts = $3, last_error = $4,"
    " due_at = now() + $5 * interval '1 second' WHERE alert_id = $1 AND webhook = $2"
)


def signature(key: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    signed = b".".join((message_id.encode(), str(timestamp_s).encode(), body))
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def retry_s(attempts: int, spread: float) -> float:
    """How long to wait after so many attempts; `spread`, 0 to 1, keeps many from coming at once."""
    longest = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(attempts - 1, 20))
    return longest * (0.5 + spread / 2)


class Webhooks:
    """Tells each webhook what is due. Any number of servers may do so at once."""

    def __init__(self, pool: Any, webhooks: Sequence[Webhook]) -> None:
        self._pool = pool
        self._webhooks = webhooks

    async def run(self) -> None:
        """Tell for ever; run it as a task."""
        if not self._webhooks:
            await asyncio.Event().wait()
        async with (
            httpx.AsyncClient(
                timeout=_TIMEOUT_S, follow_redirects=False, trust_env=False
            ) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for webhook in self._webhooks:
                tasks.create_task(self._tell(client, webhook))

    async def _tell(self, client: httpx.AsyncClient, webhook: Webhook) -> None:
        while True:
            try:
                told = await self._round(client, webhook)
            except (*database.AWAY, asyncpg.PostgresError) as error:
                log.warning("alerts wait", webhook=webhook.name, error=said(error))
                await asyncio.sleep(_AWAY_S)
                continue
            if told < _AT_ONCE:
                await asyncio.sleep(_LOOK_S)

    async def _round(self, client: httpx.AsyncClient, webhook: Webhook) -> int:
        """Tell what is due, up to a limit; how much that was.

        The rows stay locked meanwhile: no other server tells the same. One that dies frees them.
        """
        async with self._pool.acquire(timeout=5) as db, db.transaction():
            rows = await db.fetch(_DUE, webhook.name, _AT_ONCE)
            answers = await asyncio.gather(
                *(_send(client, webhook, row["alert_id"], row["body"]) for row in rows)
            )
            for row, problem in zip(rows, answers, strict=True):
                attempts = row["attempts"] + 1
                key = row["alert_id"], webhook.name, attempts
                if problem is None or attempts >= MOST_ATTEMPTS:
                    await db.execute(_DONE, *key, problem or "")
                else:
                    await db.execute(_LATER, *key, problem, retry_s(attempts, random.random()))  # noqa: S311
                if problem is not None:
                    say = log.error if attempts >= MOST_ATTEMPTS else log.warning
                    say(
                        "alert given up" if attempts >= MOST_ATTEMPTS else "alert not taken",
                        webhook=webhook.name,
                        alert_id=row["alert_id"],
                        attempts=attempts,
                        error=problem,
                    )
            return len(rows)


async def _send(
    client: httpx.AsyncClient, webhook: Webhook, alert_id: str, body: bytes
) -> str | None:
    """One attempt: what went wrong, or None."""
    now_s = int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": "tollbook",
        "webhook-id": alert_id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": signature(webhook.key(), alert_id, now_s, body),
    }
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            # What it answers beyond the status is not read: it may be of any length.
            async with client.stream("POST", webhook.url, content=body, headers=headers) as answer:
                status = answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None if 200 <= status < 300 else f"it answered {status}"
