"""What the rules beside the fields cost at the gRPC door: compiled, and by protovalidate.

Both check the same messages in the same process, in turns. Figures are microseconds of the
best of many rounds: a check does no I/O, so all above the best is the machine's other work.
"""

from __future__ import annotations

import json
import timeit
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import protovalidate
from google.protobuf.message import Message

from kernel import rules
from tollbook.inference.v1 import inference_pb2
from tollbook.ledger.v1 import ledger_pb2

_ROUNDS: Final = 30
_ROUND_S: Final = 0.05

_SAID: Final = (
    ("system", "You answer in one sentence, and say so when you do not know."),
    ("user", "What is a tollbook?"),
    ("assistant", "A ledger in which every passage and its price was written down."),
)


def _generate(prompt: inference_pb2.ChatPrompt) -> Message:
    return inference_pb2.GenerateRequest(
        spec=inference_pb2.GenerationSpec(
            request_id="3f0c1e9a-7d52-4b1e-9c43-0a1b2c3d4e5f",
            model="tiny-support",
            chat=prompt,
            sampling=inference_pb2.SamplingParams(
                max_tokens=256, temperature=0.7, top_p=0.9, n=1, seed=7, stop=["\n\n"]
            ),
        )
    )


def _messages() -> dict[str, Message]:
    said = [inference_pb2.ChatMessage(role=role, content=text) for role, text in _SAID]
    bad = [inference_pb2.ChatMessage(role="nobody", content=text) for _, text in _SAID]
    return {
        "append": ledger_pb2.AppendRequest(
            log="control", idempotency_key="grant/acme/1", payload=b"x" * 200, expected_size=12
        ),
        "generate": _generate(inference_pb2.ChatPrompt(messages=said)),
        "generate_broken": _generate(inference_pb2.ChatPrompt(messages=bad)),
        # The most that the rules let through, and what a hostile caller might send in 16 MiB.
        "generate_4096_messages": _generate(inference_pb2.ChatPrompt(messages=said[:1] * 4096)),
        "generate_too_many_messages": _generate(
            inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage()] * 1_000_000)
        ),
    }


def _best_us(check: Callable[[], Any]) -> float:
    once_s = min(timeit.repeat(check, number=1, repeat=2))
    number = max(1, int(_ROUND_S / once_s))
    rounds = _ROUNDS if once_s < _ROUND_S else 1
    best_s = min(
        [once_s, *(t / number for t in timeit.repeat(check, number=number, repeat=rounds))]
    )
    return round(best_s * 1e6, 2)


def run() -> dict[str, Any]:
    """Give, for each message, what both take, in microseconds."""
    validator = rules.Validator()
    figures: dict[str, Any] = {}
    for name, message in _messages().items():
        figures[f"{name}_compiled_us"] = _best_us(partial(validator.violations, message))
        # A million messages would take it an hour.
        if name != "generate_too_many_messages":
            figures[f"{name}_protovalidate_us"] = _best_us(
                partial(protovalidate.collect_violations, message)
            )
    return figures


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
