"""Asks witnesses to cosign a checkpoint (C2SP tlog-witness), as a policy wants it.

Owns what is known of how far each witness has come. A witness that is slow or
away is waited for no longer than the limit; whether those who answered are
enough is the policy's to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import httpx
import structlog

from kernel.cosignature import CosignerKey, cosigners_of, with_lines
from kernel.note import Checkpoint, NoteError, split_note
from kernel.tlogpolicy import Policy, Witness
from kernel.tlogproof import parse_decimal
from kernel.tlogwitness import PATH, SIZE_TYPE, Request

log = structlog.get_logger()

_TIMEOUT_S: Final = 2.0
_MAX_ANSWER_BYTES: Final = 64 * 1024
_ROUNDS: Final = 3
_QUIET_S: Final = 30.0

Prove = Callable[[int], Awaitable[list[bytes]]]
"""Old size -> consistency proof from it to the checkpoint."""


class _NotCosignedError(Exception):
    """Why a witness did not cosign."""


class Cosigners:
    """The witnesses of a policy."""

    def __init__(self, policy: Policy, client: httpx.AsyncClient) -> None:
        """Errors: ValueError when a witness has no URL."""
        for witness in policy.witnesses.values():
            if not witness.url:
                raise ValueError(f"witness {witness.name!r} has no URL in the policy")
        self._policy = policy
        self._client = client
        self._sizes: dict[tuple[str, str], int] = {}
        self._told: dict[tuple[str, str], tuple[str, float]] = {}

    async def cosign(
        self, note: bytes, checkpoint: Checkpoint, last_size: int, prove: Prove
    ) -> tuple[bytes, str]:
        """The note with all cosignatures that came, and why they are not enough, or nothing.

        `last_size`: the size signed before, at which witnesses most likely are.
        """
        asked = await asyncio.gather(
            *(
                self._ask(witness, note, checkpoint, last_size, prove)
                for witness in self._policy.witnesses.values()
            )
        )
        cosigned = with_lines(note, [line for line in asked if line])
        if self._policy.is_met(cosigners_of(cosigned, self._policy.keys).keys()):
            return cosigned, ""
        missing = [
            witness.name
            for witness, line in zip(self._policy.witnesses.values(), asked, strict=True)
            if not line
        ]
        return cosigned, f"not published: no cosignature of {', '.join(missing)}"

    async def _ask(
        self, witness: Witness, note: bytes, checkpoint: Checkpoint, last_size: int, prove: Prove
    ) -> bytes:
        """A witness's line; empty when it gave none, which is then in our log."""
        key = (witness.name, checkpoint.origin)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                line = await self._exchange(witness, note, checkpoint, last_size, prove)
        except (_NotCosignedError, httpx.HTTPError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            now = asyncio.get_running_loop().time()
            before, at = self._told.get(key, ("", 0.0))
            if why != before or now - at > _QUIET_S:
                log.warning("not cosigned", witness=witness.name, origin=checkpoint.origin, why=why)
                self._told[key] = (why, now)
            return b""
        self._told.pop(key, None)
        self._sizes[key] = checkpoint.size
        return line

    async def _exchange(
        self, witness: Witness, note: bytes, checkpoint: Checkpoint, last_size: int, prove: Prove
    ) -> bytes:
        old_size = min(
            self._sizes.get((witness.name, checkpoint.origin), last_size), checkpoint.size
        )
        for _ in range(_ROUNDS):
            body = Request(old_size, await prove(old_size), note).to_bytes()
            answer = await self._client.post(f"{witness.url}{PATH}", content=body)
            if answer.status_code == httpx.codes.OK:
                return _line_of(witness.key, note, answer.content)
            if answer.status_code != httpx.codes.CONFLICT:
                raise _NotCosignedError(f"{answer.status_code} {answer.text.strip()[:200]}")
            size = parse_decimal(answer.text.removesuffix("\n"))
            if answer.headers.get("content-type") != SIZE_TYPE or size is None:
                raise _NotCosignedError("a conflict that names no size")
            if size > checkpoint.size:
                raise _NotCosignedError(
                    f"it has cosigned {size} entries, this is {checkpoint.size}: was the database"
                    " restored to an earlier point, or does another sign with this key?"
                )
            if size == old_size:
                raise _NotCosignedError(
                    f"it has cosigned another tree of {size} entries: THE LOG HAS TWO HISTORIES"
                )
            old_size = size
        raise _NotCosignedError("it moves on while it is asked: does another signer run?")


def _line_of(key: CosignerKey, note: bytes, answer: bytes) -> bytes:
    """The line of the answer that is this key's cosignature. Errors: _NotCosignedError."""
    try:
        if len(answer) > _MAX_ANSWER_BYTES:
            raise NoteError("the answer is too long")
        text, _ = split_note(note)
        for line in answer.splitlines(keepends=True):
            if line.endswith(b"\n") and cosigners_of(text + b"\n" + line, [key]):
                return line
    except NoteError as error:
        raise _NotCosignedError(f"its answer is no cosignature: {error}") from None
    raise _NotCosignedError("its answer has no cosignature of its key")
