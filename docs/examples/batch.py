"""A batch by the official OpenAI client: a file of requests, its results, what it used.

eval "$(.venv/bin/tollbook env)" && export OPENAI_API_KEY=tb-...
.venv/bin/python docs/examples/batch.py
"""

from __future__ import annotations

import json
import time

import openai

ENDED = ("completed", "failed", "expired", "cancelled")


def line(custom_id: str, question: str) -> str:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 16,
    }
    request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**request, "body": body})


def main() -> None:
    client = openai.OpenAI()
    lines = [line("ledger", "What is a ledger?"), line("proof", "What is a proof?")]
    file = client.files.create(file=("night.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while (batch := client.batches.retrieve(batch.id)).status not in ENDED:
        time.sleep(0.2)
    print(f"{batch.status}: {batch.request_counts}")
    if batch.output_file_id:
        for text in client.files.content(batch.output_file_id).text.splitlines():
            answer = json.loads(text)
            body = answer["response"]["body"]
            print(f"{body['id']}: {body['usage']['completion_tokens']} output tokens")


if __name__ == "__main__":
    main()
