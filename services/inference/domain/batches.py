"""A batch of requests: its lines, its states, and under which ids its lines run. Pure.

Format: OpenAI's batch input, a file of JSON lines `{custom_id, method, url, body}`, and the batch
object's states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

MAX_LINES: Final = 50_000
MAX_LINE_BYTES: Final = 1 << 20
MAX_CUSTOM_ID_CHARS: Final = 512
# Of one file, those that are told: OpenAI's clients show them all.
MAX_ERRORS: Final = 20
# How often a line is run that the service itself failed on.
MAX_ATTEMPTS: Final = 8
WINDOW: Final = "24h"
WINDOW_S: Final = 24 * 60 * 60
ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")

VALIDATING: Final = "validating"
IN_PROGRESS: Final = "in_progress"
CANCELLING: Final = "cancelling"
FINALIZING: Final = "finalizing"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
EXPIRED: Final = "expired"
CANCELLED: Final = "cancelled"
# States from which a restart goes on.
UNDER_WAY: Final = frozenset({VALIDATING, IN_PROGRESS, CANCELLING, FINALIZING})


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch; `number` counts from 1, `body` is its JSON text."""

    number: int
    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a batch cannot run: which line of its file, and what of it."""

    line: int | None
    code: str
    message: str


@dataclass
class Sums:
    """How many lines are answered and how many failed, and the answers' tokens."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, answered: bool, line: dict[str, Any]) -> None:
        """Enter one line of the results."""
        if not answered:
            self.failed += 1
            return
        self.completed += 1
        usage = line["response"]["body"]["usage"]
        self.input_tokens += usage["prompt_tokens"]
        if "completion_tokens" not in usage:
            # Of an embedding, which has no more to it.
            return
        self.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]
        self.output_tokens += usage["completion_tokens"]
        self.reasoning_tokens += usage["completion_tokens_details"]["reasoning_tokens"]


@dataclass
class Batch:
    """One batch, as it is kept. Instants are whole seconds since 1970, by name of the state."""

    id: str
    account_id: str
    key_digest: str
    """SHA-256 of the secret that it was sent with, in hex: its lines go by that key's rights."""
    endpoint: str
    input_file_id: str
    output_file_id: str
    error_file_id: str
    metadata: dict[str, str]
    expires_at: int
    status: str = VALIDATING
    at: dict[str, int] = field(default_factory=dict)
    total: int = 0
    problems: list[Problem] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)
    """Of all results once it has ended."""

    def enter(self, status: str, now_s: int) -> None:
        """Go into a state; its instant is that of the first time."""
        self.status = status
        self.at.setdefault(status, now_s)

    def to_json(self) -> str:
        """What `from_json` reads back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Batch:
        """Errors: ValueError, TypeError, KeyError for what `to_json` never wrote."""
        values = json.loads(text)
        values["problems"] = [Problem(**one) for one in values["problems"]]
        values["sums"] = Sums(**values["sums"])
        return cls(**values)


def request_id_of(batch_id: str, custom_id: str, attempt: int) -> str:
    """The id of a line's usage event: the same for the same line however often it is taken up.

    `attempt` counts from 1 and goes up only when the one before is settled as failed by us.
    """
    digest = hashlib.sha256(custom_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{batch_id}/{digest}" + (f"/{attempt}" if attempt > 1 else "")


def read_line(number: int, raw: bytes, endpoint: str) -> Line | Problem:
    """One line of an input file."""
    if len(raw) > MAX_LINE_BYTES:
        return Problem(number, "line_too_long", f"a line has at most {MAX_LINE_BYTES} bytes")
    try:
        value: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return Problem(number, "invalid_json_line", f"this line is not JSON: {error}")
    if not isinstance(value, dict):
        return Problem(number, "invalid_json_line", "this line is no JSON object")
    custom_id, url, body = value.get("custom_id"), value.get("url"), value.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        return Problem(
            number, "invalid_custom_id", f"custom_id: a text of 1 to {MAX_CUSTOM_ID_CHARS} letters"
        )
    if value.get("method") != "POST":
        return Problem(number, "invalid_method", "method: POST is the only one")
    if url != endpoint:
        return Problem(number, "mismatched_url", f"url: must be the batch's endpoint, {endpoint}")
    if not isinstance(body, dict):
        return Problem(number, "invalid_body", "body: the request, a JSON object, is missing")
    if body.get("stream"):
        return Problem(number, "invalid_body", "body.stream: an answer in a file is not streamed")
    return Line(number, custom_id, json.dumps(body).encode())


def check(lines: Iterable[bytes], endpoint: str) -> tuple[int, list[Problem]]:
    """(number of lines, what is wrong with them) of an input file; empty lines do not count."""
    total = 0
    problems: list[Problem] = []
    first: dict[bytes, int] = {}
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        total += 1
        if total > MAX_LINES:
            problems.append(Problem(None, "too_many_lines", f"a batch has at most {MAX_LINES}"))
            break
        line = read_line(number, raw, endpoint)
        if isinstance(line, Line):
            # A digest, so that 50,000 long ids are not held.
            digest = hashlib.sha256(line.custom_id.encode("utf-8", "surrogatepass")).digest()
            earlier = first.setdefault(digest, number)
            if earlier == number:
                continue
            line = Problem(number, "duplicate_custom_id", f"custom_id is that of line {earlier}")
        problems.append(line)
        if len(problems) >= MAX_ERRORS:
            break
    if not total:
        problems.append(Problem(None, "empty_file", "the file has no request"))
    return total, problems
