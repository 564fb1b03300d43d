"""`tollbook rate`: a line of answer for each line of usage, whatever the line is."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kernel.errors import InvalidArgument
from pricing.domain.card_yaml import parse_card
from pricing.domain.offline import OfflineRater
from tollbook.cli import rate as command

ROOT = Path(__file__).resolve().parents[3]
CARD = """
card: standard
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: in, match: {model: m, direction: in}, per: 1_000_000, price: 3.00}
  - {id: read, match: {model: m, direction: in, cache_use: read}, per: 1_000_000, price: 0.30}
  - {id: out, match: {model: m, direction: out}, per: 1_000_000, price: 15.00}
"""
LATER = CARD.replace("2026-01-01", "2026-06-01").replace("price: 15.00", "price: 20.00")
TIME = "2026-03-01T00:00:00Z"
GOOD: dict[str, Any] = {
    "id": "r-1",
    "account": "acme",
    "model": "m",
    "time": TIME,
    "usage": {
        "prompt_tokens": 1000,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 400},
    },
}


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    folder = tmp_path / "cards"
    folder.mkdir()
    (folder / "1.yaml").write_text(CARD)
    (folder / "2.yaml").write_text(LATER)
    (folder / "README").write_text("not a card")
    return folder


def run(cards: Path, usage: str | bytes, *options: str) -> Result:
    data = usage.encode() if isinstance(usage, str) else usage
    return CliRunner().invoke(
        command.rate, ["--cards", str(cards), "--usage", "-", *options], input=data
    )


def answers(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_line_has_its_leaves_lines_rules_and_exact_amounts(cards: Path) -> None:
    done = run(cards, json.dumps(GOOD), "--json")
    assert done.exit_code == 0, done.output
    (answer,) = answers(done)
    digest = answer["leaves"][0]["sha256"]
    leaf = {
        "unit": "token",
        "modality": "text",
        "cache_ttl": "default",
        "token_kind": "plain",
        "attribute": "",
        "card": "standard",
        "version": 1,
        "sha256": digest,
        "rule": "line",
        "outcome_rule": "generated",
    }
    assert answer == {
        "line": 1,
        "id": "r-1",
        "account": "acme",
        "model": "m",
        "service_tier": "standard",
        "at": "2026-03-01T00:00:00.000000Z",
        "currency": "USD",
        # 600 x 3 + 400 x 0.30 + 20 x 15, of a million.
        "amount": "0.00222",
        "amount_pico": "2220000000",
        "unpriced_leaves": 0,
        "leaves": [
            leaf
            | {
                "direction": "in",
                "cache_use": "none",
                "amount_units": 600,
                "charged_units": 600,
                "line": "in",
                "amount": "0.0018",
                "amount_pico": "1800000000",
            },
            leaf
            | {
                "direction": "in",
                "cache_use": "read",
                "amount_units": 400,
                "charged_units": 400,
                "line": "read",
                "amount": "0.00012",
                "amount_pico": "120000000",
            },
            leaf
            | {
                "direction": "out",
                "cache_use": "none",
                "amount_units": 20,
                "charged_units": 20,
                "line": "out",
                "amount": "0.0003",
                "amount_pico": "300000000",
            },
        ],
    }
    assert len(bytes.fromhex(digest)) == 32
    assert "1 rated, 0 with a leaf that has no price, 0 bad" in done.stderr


def test_every_line_has_its_answer_and_the_status_says_that_some_are_bad(cards: Path) -> None:
    lines = [
        json.dumps(GOOD),
        "{",
        "",
        json.dumps(GOOD | {"id": "r-4", "usage": {"prompt_tokens": -1}}),
        json.dumps(GOOD | {"id": "r-5", "model": "nobody-knows"}),
        "\udce9".encode("utf-8", "surrogateescape").decode("latin-1"),
        json.dumps(GOOD),
    ]
    done = run(cards, "\n".join(lines), "--json")
    assert done.exit_code == command.INCOMPLETE
    found = answers(done)
    assert [answer["line"] for answer in found] == [1, 2, 4, 5, 6, 7]
    assert found[0] == found[-1] | {"line": 1}
    assert found[2]["id"] == "r-4"
    assert found[2]["error"]["field"] == "usage.prompt_tokens"
    assert found[2]["error"]["reason"] == "OUT_OF_RANGE"
    assert found[1]["error"]["reason"] == found[4]["error"]["reason"] == "NOT_READABLE"
    # Never an implicit zero: what is not priced has no amount.
    assert (found[3]["amount"], found[3]["amount_pico"]) == (None, None)
    assert found[3]["unpriced_leaves"] == 3
    assert "2 rated, 1 with a leaf that has no price, 3 bad" in done.stderr


def test_a_strangers_text_neither_ends_the_run_nor_reaches_the_terminal(cards: Path) -> None:
    usage = '"usage": {"prompt_tokens": 1, "\\u001b[2J": 0}'
    lines = [
        # Half of a surrogate pair: JSON can spell it, and no encoding has it.
        json.dumps(GOOD | {"model": "m\ud800"}),
        json.dumps(GOOD | {"id": "x\x1b[31m\udfff", "time": "?"}),
        f'{{"id": "r-3", "model": "m", {usage}}}',
        json.dumps(GOOD),
    ]
    done = run(cards, "\n".join(lines))
    assert done.exit_code == command.INCOMPLETE, done.exception
    found = done.stdout.splitlines()
    assert found[0] == "1  no price for 3 of 3 leaves  m\\ud800"
    assert found[1].startswith("2  bad: x\\x1b[31m\\udfff: time: ")
    assert found[2].startswith("3  bad: r-3: usage.\\x1b[2J: ")
    assert found[3] == "4  0.00222 USD  m"
    assert [answer["line"] for answer in answers(run(cards, "\n".join(lines), "--json"))] == [
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize(
    ("line", "field", "why"),
    [
        ('{"model": "m", "usage": {"prompt_tokens": 9, "prompt_tokens": 1}}', "prompt_tokens", ""),
        ('{"model": "dear", "model": "m", "usage": {"prompt_tokens": 9}}', "model", ""),
        ('{"model": "m", "usage": {"prompt_tokens": 1' + "0" * 5000 + "}}", "", "thousands"),
        ('{"usage": ' + "[" * 100_000, "", "nested too deep"),
        ('{"model":', "", "expecting value at character"),
        (b'{"model": "\xff"}', "", "not UTF-8"),
    ],
    ids=["a count twice", "a model twice", "digits", "nesting", "cut off", "bytes"],
)
def test_a_line_that_could_be_read_in_two_ways_or_in_none_is_bad_and_says_why(
    cards: Path, line: str | bytes, field: str, why: str
) -> None:
    (answer,) = answers(run(cards, line, "--json"))
    assert answer["error"]["field"] == field
    assert (why or "stands twice") in answer["error"]["message"]
    assert "sys." not in answer["error"]["message"]


def test_for_people_it_is_one_short_line_each(cards: Path) -> None:
    lines = [json.dumps(GOOD), json.dumps(GOOD | {"model": "x"}), json.dumps(GOOD | {"time": "?"})]
    done = run(cards, "\n".join(lines))
    assert done.exit_code == command.INCOMPLETE
    assert done.stdout.splitlines() == [
        "1  0.00222 USD  m",
        "2  no price for 3 of 3 leaves  x",
        "3  bad: r-1: time: an RFC 3339 instant with its zone is needed, such as"
        " 2026-01-31T00:00:00Z",
    ]


def test_cost_cards_rate_the_same_usage_and_sell_cards_are_not_asked(cards: Path) -> None:
    cost = CARD.replace("currency:", "purpose: cost\ncurrency:").replace("USD", "EUR")
    (cards / "cost.yaml").write_text(cost.replace("card: standard", "card: ours"))
    sold = answers(run(cards, json.dumps(GOOD), "--json"))
    (found,) = answers(run(cards, json.dumps(GOOD), "--json", "--purpose", "cost"))
    assert (found["amount"], found["currency"]) == (sold[0]["amount"], "EUR")
    assert {leaf["card"] for leaf in found["leaves"]} == {"ours"}
    (cards / "cost.yaml").unlink()
    done = run(cards, json.dumps(GOOD), "--purpose", "cost")
    assert "no card of purpose 'cost'" in str(done.exception)


def test_as_of_an_instant_every_line_has_the_prices_of_that_instant(cards: Path) -> None:
    timeless = {name: value for name, value in GOOD.items() if name != "time"}
    done = run(
        cards,
        f"{json.dumps(GOOD)}\n{json.dumps(timeless)}",
        "--json",
        "--as-of",
        "2026-07-01T00:00:00Z",
    )
    assert done.exit_code == 0, done.output
    assert [answer["amount"] for answer in answers(done)] == ["0.00232", "0.00232"]
    assert {leaf["version"] for answer in answers(done) for leaf in answer["leaves"]} == {2}


def test_a_line_too_long_is_skipped_and_said_and_the_next_is_read(cards: Path) -> None:
    long = json.dumps(GOOD | {"id": "x" * command.MAX_LINE_BYTES * 3})
    done = run(cards, f"{long}\n{json.dumps(GOOD)}", "--json")
    found = answers(done)
    assert [answer["line"] for answer in found] == [1, 2]
    assert found[0]["error"]["message"] == f"longer than {command.MAX_LINE_BYTES} bytes"
    assert found[1]["amount"] == "0.00222"


class Endless(io.RawIOBase):
    """A file that never ends and is nowhere: only what is read exists."""

    def __init__(self, line: bytes, lines: int) -> None:
        self._line = line
        self.left = lines

    def readline(self, size: int | None = -1) -> bytes:
        if not self.left:
            return b""
        self.left -= 1
        return self._line


def test_it_answers_while_it_reads(cards: Path) -> None:
    """The first line is answered before the second is read: memory does not grow with the file."""
    source = Endless(json.dumps(GOOD).encode() + b"\n", 50)
    seen: list[int] = []

    class Watch(io.StringIO):
        def write(self, text: str) -> int:
            seen.append(source.left)
            return len(text)

    rater = OfflineRater([parse_card(CARD)], "USD")
    out = command._JsonLines(Watch(), "USD")
    assert command._run(rater, source, out) == (50, 0, 0)  # type: ignore[arg-type]
    assert seen == list(range(49, -1, -1))


def edit(text: str, **change: str) -> str:
    for old, new in change.items():
        text = text.replace(old, new)
    return text


BROKEN = [
    ({}, "1 to 10000 are read"),
    ({"1.yaml": CARD.replace("3.00", "-3.00")}, "SystemExit"),
    ({"1.yaml": CARD, "2.yaml": CARD.replace("USD", "EUR")}, "say --currency"),
    ({"1.yaml": CARD, "2.yaml": CARD.replace("card: standard", "card: other")}, "set 'priority'"),
]


@pytest.mark.parametrize(("files", "said"), BROKEN)
def test_cards_that_cannot_be_used_end_it_before_the_first_line(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = run(tmp_path, json.dumps(GOOD), "--json")
    assert done.exit_code == 1
    assert not done.stdout
    if said == "SystemExit":
        assert "line 6, column" in done.stderr
    else:
        assert isinstance(done.exception, InvalidArgument)
        assert said in str(done.exception)


def test_whose_prices_is_said_where_there_are_several(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text(CARD)
    (tmp_path / "2.yaml").write_text(edit(CARD, USD="EUR", standard="other", **{"15.00": "10.00"}))
    done = run(tmp_path, json.dumps(GOOD), "--currency", "EUR")
    assert done.stdout == "1  0.00212 EUR  m\n"
    missing = run(tmp_path, json.dumps(GOOD), "--currency", "CHF")
    assert isinstance(missing.exception, InvalidArgument)
    assert "there are EUR, USD" in str(missing.exception)


def test_as_a_command_it_says_in_one_line_what_is_wrong(cards: Path, tmp_path: Path) -> None:
    arguments = ["rate", "--cards", str(cards), "--usage", str(tmp_path / "none.jsonl")]
    done = subprocess.run(
        [sys.executable, "-m", "tollbook.cli", *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'gen'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert (
        done.stderr
        == f"tollbook: {tmp_path / 'none.jsonl'} cannot be read: No such file or directory\n"
    )
