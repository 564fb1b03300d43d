"""A price file becomes cards that say the same, all of it, the same text each time."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.unit.pricing.imports import sample

from kernel.errors import InvalidArgument
from pricing.domain.card import Card
from pricing.domain.card_yaml import parse_card
from pricing.domain.imports.genai_cards import Import, import_prices
from pricing.domain.imports.model_names import read_document
from pricing.domain.imports.price_file import PriceFileError, read_price_file
from tollbook.cli.cards_import import NAMES_FILE, import_

# The published list is data of others and no part of this project: beside it, or not there.
PUBLISHED = Path(__file__).resolve().parents[5] / "shared" / "data" / "genai_prices_slim.json.gz"


@pytest.fixture(scope="module")
def made() -> Import:
    return import_prices(read_price_file(sample.slim_file()))


def card_of(made: Import, name: str) -> Card:
    return parse_card(made.cards[name])


def line_of(card: Card, line_id: str) -> Any:
    (line,) = [line for line in card.lines if line.line_id == line_id]
    return line


def test_a_provider_is_a_card_and_a_date_is_a_version_of_it(made: Import) -> None:
    assert list(made.cards) == ["acme.01.yaml", "acme.02.yaml", "other.01.yaml"]
    first, second = card_of(made, "acme.01.yaml"), card_of(made, "acme.02.yaml")
    assert first.card_id == second.card_id == "genai-prices/acme"
    assert (first.effective_from_us, second.effective_from_us) == (0, 1_749_513_600_000_000)
    assert line_of(first, "bolt-cheaper.input").price_pico == 10_000_000
    assert line_of(second, "bolt-cheaper.input").price_pico == 2_000_000
    # What has no date stands in every version.
    assert line_of(first, "bolt-1.input") == line_of(second, "bolt-1.input")
    assert made.models == 8


def test_a_key_is_a_line_with_its_dimensions(made: Import) -> None:
    card = card_of(made, "acme.01.yaml")
    write = line_of(card, "bolt-1.cache-write")
    assert dict(write.match) == {
        "model": "acme/bolt-1",
        "direction": "in",
        "cache_use": "write",
        "service_tier": "standard",
    }
    assert write.price_pico == 3_750_000
    request = line_of(card, "bolt-1.requests-kcount")
    assert (request.unit, request.price_pico) == ("request", 12_000_000_000)
    audio = line_of(card, "bolt-sound.cache-audio-read")
    assert dict(audio.match)["modality"] == "audio"
    assert audio.specificity > line_of(card, "bolt-sound.cache-read").specificity


def test_tiers_by_input_tokens_are_of_the_whole_request_and_begin_beyond(made: Import) -> None:
    tiers = line_of(card_of(made, "acme.01.yaml"), "bolt-long.output").tiers
    assert (tiers.by, tiers.mode, tiers.boundary) == ("context_length", "whole_request", "gt")
    assert [(step.over, step.price_pico) for step in tiers.steps] == [(200_000, 15_000_000)]


def test_hours_have_every_price_that_the_other_hours_have(made: Import) -> None:
    """A cached token in those hours must not find the cache price of the others."""
    card = card_of(made, "acme.01.yaml")
    (window,) = card.windows
    assert (window.start_s, window.end_s, len(window.days)) == (1800, 59_400, 7)
    day = line_of(card, f"bolt-night.cache-read.{window.name}")
    assert day.price_pico == 270_000
    assert day.specificity > line_of(card, "bolt-night.cache-read").specificity


def test_what_is_no_whole_number_of_pico_units_is_rounded_and_named(made: Import) -> None:
    (rounded,) = made.rounded
    assert rounded == (
        "acme/bolt-embed",
        "input_mtok",
        "0.08333333333333334 per 1000000",
        "0.083333 per 1000000",
    )
    assert line_of(card_of(made, "acme.01.yaml"), "bolt-embed.input").price_pico == 83_333
    assert made.without_output == ("acme/bolt-embed", "acme/nutcracker")
    assert not made.not_expressed


def test_the_full_form_brings_tiers_tools_and_lists_what_it_cannot_say() -> None:
    full = import_prices(read_price_file(sample.full_file()))
    card = card_of(full, "acme.01.yaml")
    assert dict(line_of(card, "bolt-2.cache-write-1h").match)["cache_ttl"] == "1h"
    assert line_of(card, "bolt-2.output-reasoning").price_pico == 30_000_000
    search = line_of(card, "bolt-2.web-searches-kcount")
    assert (search.unit, dict(search.match)["attribute"]) == ("tool_call", "web_search")
    batch = line_of(card, "bolt-2.input.batch")
    assert (dict(batch.match)["service_tier"], batch.price_pico) == ("batch", 2_500_000)
    # A variant that does not price a key leaves it at its standard price.
    assert line_of(card, "bolt-2.cache-write.batch").price_pico == 6_250_000
    assert full.not_expressed == (
        ("acme/bolt-2", "prices when region=moon"),
        ("acme/bolt-2", "input_mchars: no unit for it"),
    )
    assert [one.key for one in full.rounded] == ["audio_hours"]


def test_the_same_file_gives_the_same_text(made: Import) -> None:
    again = import_prices(read_price_file(sample.slim_file()))
    assert again.cards == made.cards
    assert again.names.document() == made.names.document()


def test_a_look_ahead_is_read_too() -> None:
    def change(providers: list[dict[str, Any]]) -> None:
        providers[1]["models"][0]["match"] = {"regex": "^(?!.*-tts(?:$|-))nut"}

    names = import_prices(read_price_file(edited(change))).names
    assert names.card_model("other", "Nut-2") == "other/nut"
    assert names.card_model("other", "nut-2-tts") == ""


NAMES = [
    ("acme", "bolt-1", "acme/bolt-1"),
    ("acme", "BOLT-1-2026-01-31", "acme/bolt-1"),
    ("acme", "bolt-1-20260131", "acme/bolt-1"),
    ("acme", "bolt-11", ""),
    ("ACME", "bolt-long-preview", "acme/bolt-long"),
    ("acme.ai", "bolt-1", "acme/bolt-1"),
    ("acme.com", "bolt-1", ""),
    # Not among its own: it offers another's.
    ("acme", "hazelnut", "other/nut"),
    ("", "Bolt-1", "acme/bolt-1"),
    ("", "walnut", "other/nut"),
    ("", "screw", ""),
    # Its own name goes before another provider's rule, also if it has no price.
    ("", "acme/nutcracker", "acme/nutcracker"),
    ("", "elsewhere/nutcracker", "other/nut"),
    ("nobody", "bolt-1", ""),
]


@pytest.mark.parametrize(("provider", "name", "expected"), NAMES)
def test_a_model_is_found_by_its_names(
    made: Import, provider: str, name: str, expected: str
) -> None:
    assert made.names.card_model(provider, name) == expected
    assert read_document(made.names.document()).card_model(provider, name) == expected


def edited(change: Callable[[list[dict[str, Any]]], object]) -> bytes:
    providers = copy.deepcopy(sample.PROVIDERS)
    change(providers)
    return json.dumps(providers).encode()


def set_price(value: Any) -> bytes:
    def change(providers: list[dict[str, Any]]) -> None:
        providers[1]["models"][0]["prices"]["input_mtok"] = value

    return edited(change)


BROKEN: list[tuple[bytes, str]] = [
    (b"", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'{"providers": []}', "a list of providers"),
    (b"[]", "a list of providers"),
    (set_price(-1), r"providers\[1\].models\[0\] \(nut\).prices.input_mtok: a price is"),
    (set_price("1e9"), "is no price"),
    (set_price(True), "a price is"),
    (set_price({"base": 1}), "base and tiers"),
    (set_price({"base": 1, "tiers": [{"start": 1.5, "price": 2}]}), "a start and a price"),
    (set_price(None).replace(b"null", b"NaN"), "NaN is no number"),
    (edited(lambda all_: all_[0].update(id="Acme Inc")), "is not 1-41 of"),
    (edited(lambda all_: all_[1].update(id="acme")), "two providers"),
    (edited(lambda all_: all_[0]["models"].append(all_[0]["models"][0])), "two models"),
    (edited(lambda all_: all_[0]["models"][0].pop("match")), r"\(bolt-1\).match is missing"),
    (
        edited(lambda all_: all_[0]["models"][0].update(match={"sounds_like": "x"})),
        "there is no clause",
    ),
    (
        edited(lambda all_: all_[0]["models"][0].update(match={"regex": "(a"})),
        "no regular expression",
    ),
    # It could be tried in more ways than there is time for.
    (
        edited(lambda all_: all_[0]["models"][0].update(match={"regex": "(?!x)(a+)+$"})),
        "no regular expression",
    ),
    (edited(lambda all_: all_[0]["models"][0].update(prices=[])), "1 to 100 are read"),
    (
        edited(lambda all_: all_[0]["models"][3]["prices"][1].update(constraint={"moon": "full"})),
        "neither a start date nor hours: moon",
    ),
    (
        edited(
            lambda all_: all_[0]["models"][3]["prices"][1].update(
                constraint={"start_date": "2025-02-30"}
            )
        ),
        "is no date",
    ),
    (
        edited(
            lambda all_: all_[0]["models"][2]["prices"][1].update(
                constraint={"start_time": "00:30:00+02:00", "end_time": "16:30:00Z"}
            )
        ),
        "no time of day of UTC",
    ),
]


@pytest.mark.parametrize(("data", "said"), BROKEN)
def test_what_is_no_price_list_is_refused_by_its_place(data: bytes, said: str) -> None:
    with pytest.raises(PriceFileError, match=said):
        read_price_file(data)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(import_, ["genai-prices", *arguments])


def test_the_command_writes_a_folder_whole_and_says_what_it_did(tmp_path: Path) -> None:
    file = tmp_path / "prices.json.gz"
    file.write_bytes(gzip.compress(sample.slim_file()))
    folder = tmp_path / "made" / "cards"
    done = run(str(file), "--to", str(folder))
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0] == f"8 models: 3 cards with 46 lines in {folder}"
    assert "  acme/bolt-embed input_mtok: 0.08333333333333334 per 1000000" in done.output
    assert "cannot be said in a card: 0" in done.output
    written = {path.name for path in folder.iterdir()}
    assert written == {"acme.01.yaml", "acme.02.yaml", "other.01.yaml", NAMES_FILE}
    assert [path.name for path in folder.parent.iterdir()] == ["cards"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = run(str(file), "--to", str(folder))
    assert isinstance(again.exception, InvalidArgument)
    assert "not empty" in str(again.exception)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), (b"{}", "a list of providers"), (b"\x1f\x8bxx", "")],
)
def test_the_command_refuses_a_bad_file_in_one_line(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "prices.json"
    if content is not None:
        file.write_bytes(content)
    done = run(str(file), "--to", str(tmp_path / "cards"))
    assert isinstance(done.exception, InvalidArgument), done.exception
    assert said in str(done.exception)
    assert not (tmp_path / "cards").exists()


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published price list is not here")
def test_every_published_model_becomes_a_valid_card() -> None:
    made = import_prices(read_price_file(gzip.decompress(PUBLISHED.read_bytes())))
    assert made.models == 1285
    assert made.not_expressed == ()
    # 1/12 of a dollar a million, six times, and 0.18 with the dust of binary fractions.
    assert len(made.rounded) == 7
    assert {one.used for one in made.rounded} == {"0.083333 per 1000000", "0.18 per 1000000"}
    assert len(made.without_output) == 40
    cards = [parse_card(text) for text in made.cards.values()]
    priced = {dict(line.match)["model"] for card in cards for line in card.lines}
    assert len(priced) == 1285
    assert sum(len(card.lines) for card in cards) == made.lines
