"""Tollbook's own Python client: typed, and its retries are never charged twice.

eval "$(.venv/bin/tollbook env)" && export TOLLBOOK_SECRET=tb-...
PYTHONPATH=services:gen .venv/bin/python docs/examples/python_client.py
"""

from __future__ import annotations

import asyncio
import os

from tollbook.client import AsyncClient, CallError, Client, Delta, Sampling

ADDRESS, SECRET = os.environ["TOLLBOOK_INFERENCE_ADDRESS"], os.environ["TOLLBOOK_SECRET"]
SHORT = Sampling(max_tokens=16, temperature=0.8)


def blocking() -> None:
    with Client(ADDRESS, SECRET) as client:
        print("served:", ", ".join(model.name for model in client.models()))
        answer = client.generate_once("What is a ledger?", model="tiny", sampling=SHORT)
        print(f"{answer.request_id}: {answer.usage.output_tokens} output tokens")
        # The request id was made before the first try, and all tries are under it.
        again = client.generate_once(
            "What is a ledger?", model="tiny", sampling=SHORT, request_id=answer.request_id
        )
        same = again.choices == answer.choices
        print(f"sent twice: the same answer: {same}, replayed: {again.replayed}")
        try:
            client.generate_once("hello", model="no-such-model")
        except CallError as error:
            print(f"{type(error).__name__} {error.reason}: {error.advice}")


async def streamed() -> None:
    async with AsyncClient(ADDRESS, SECRET) as client:
        # Leaving the block early tells the engine to stop; what it generated is charged.
        async with client.generate("What is a checkpoint?", model="tiny", sampling=SHORT) as stream:
            async for piece in stream:
                if isinstance(piece, Delta):
                    print(repr(piece.text), end=" ")
        if stream.usage is not None:
            print(f"\n{stream.request_id}: {stream.usage.output_tokens} output tokens, streamed")


if __name__ == "__main__":
    blocking()
    asyncio.run(streamed())
