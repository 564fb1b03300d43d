"""The official OpenAI client, unchanged: a whole answer, a stream with its usage, an error.

pip install openai
eval "$(.venv/bin/tollbook env)" && export OPENAI_API_KEY=tb-...
.venv/bin/python docs/examples/openai_client.py
"""

from __future__ import annotations

import uuid

import openai
from openai.types.chat import ChatCompletionUserMessageParam


def question(text: str) -> list[ChatCompletionUserMessageParam]:
    return [{"role": "user", "content": text}]


def main() -> None:
    # Address and secret are read from OPENAI_BASE_URL and OPENAI_API_KEY.
    client = openai.OpenAI()
    print("served:", ", ".join(model.id for model in client.models.list()))

    # The id stays the same over the client's own retries, so the charge is one.
    once = {"Idempotency-Key": f"once-{uuid.uuid4().hex}"}
    for _ in range(2):
        answer = client.chat.completions.create(
            model="tiny", messages=question("What is a ledger?"), max_tokens=16, extra_headers=once
        )
        if answer.usage is not None:
            print(f"{answer.id}: {answer.usage.completion_tokens} output tokens")

    stream = client.chat.completions.create(
        model="tiny",
        messages=question("What is a checkpoint?"),
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.usage is not None:
            print(f"{chunk.id}: {chunk.usage.completion_tokens} output tokens, streamed")

    try:
        client.chat.completions.create(model="no-such-model", messages=question("hello"))
    except openai.NotFoundError as error:
        print(f"{error.status_code} {error.code}")


if __name__ == "__main__":
    main()
