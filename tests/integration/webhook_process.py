"""`python -m tests.integration.webhook_process DSN FILE`: tells webhooks, to be killed over it."""

from __future__ import annotations

import asyncio
import sys

from pricing.adapters import alert_rules, database
from pricing.adapters.webhooks import Webhooks


async def main(dsn: str, path: str) -> None:
    """Tell what is due, for ever."""
    webhooks = alert_rules.read(path).webhooks
    pool = await database.open_pool(dsn, len(webhooks), asyncio.Event())
    await Webhooks(pool, webhooks).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
