"""Vectors of texts with OpenAI's own client, from an instance whose model embeds.

OPENAI_BASE_URL=http://HOST:PORT/v1 OPENAI_API_KEY=tb-... python docs/examples/embeddings.py
"""

from __future__ import annotations

from openai import OpenAI


def main() -> None:
    client = OpenAI()
    answer = client.embeddings.create(model="tiny", input=["What is a ledger?", "A toll."])
    print(f"{len(answer.data)} vectors of {len(answer.data[0].embedding)} components")
    print(f"{answer.usage.prompt_tokens} tokens, which is what is charged")


if __name__ == "__main__":
    main()
