"""Laws of an embedding: its tokens are counted once, as far as vectors came, whoever waits."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.inference.scripted import CALLER, ENGINE_ID, Bench, bench

from inference import engine as port
from inference.adapters.spool import Spool
from inference.app import embedding, recovery
from inference.app.embedding import EmbeddingReader
from inference.app.requests import embedded_of
from inference.app.streams import Streams
from inference.domain.claims import Doubt
from inference.domain.counting import input_tokens_of, metered_tokens_of
from inference.domain.embedding import EmbeddingTally
from inference.domain.event import body_digest
from inference.domain.outcome import End
from inference.domain.records import Settled
from kernel import errors
from kernel.clock import SystemClock
from tollbook.inference.v1 import inference_pb2 as inference
from tollbook.usage.v1 import usage_pb2 as usage

SIZE = 4
LENGTHS = (5, 3, 2)


def vector(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


VECTORS = [vector(0.5, 0.25, -1.0, 3.0), vector(1, 2, 3, 4), vector(0.1, 0.2, 0.3, 0.4)]


def asked(request_id: str = "e", **fields: Any) -> inference.EmbedRequest:
    inputs = [inference.TokenPrompt(token_ids=range(length)) for length in LENGTHS]
    return inference.EmbedRequest(
        **{"request_id": request_id, "model": "tiny", "inputs": inputs, **fields}
    )


def embedder(folder: Path, **options: Any) -> Bench:
    made = bench(folder, **options)
    made.engine.vector_size = SIZE
    return made


def begun(made: Bench, request: inference.EmbedRequest) -> EmbeddingReader:
    found = made.requests.embed(CALLER, request)
    assert isinstance(found, EmbeddingReader)
    return found


async def settled(made: Bench, request_id: str) -> tuple[usage.UsageEvent, Settled]:
    """The one event of a request; the books are whole with it."""
    await made.requests.settled()
    found = made.requests.embed(CALLER, asked(request_id))
    assert isinstance(found, Settled)
    assert made.books.residual() == 0
    return usage.UsageEvent.FromString(found.event), found


async def reason_of(call: Awaitable[object]) -> str:
    with pytest.raises(errors.TollbookError) as caught:
        await call
    return caught.value.reason


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 60), st.integers(0, 9))), st.booleans()
)
def test_leaves_and_waste_are_all_that_the_engine_counted(
    pieces: list[tuple[int, int, int]], delivered: bool
) -> None:
    tally = EmbeddingTally(sum(tokens for tokens, *_ in pieces) + 1)
    counter = 0
    for tokens, doubted, beyond in pieces:
        tally.add(tokens, Doubt(prompt_tokens=min(doubted, tokens), beyond_tokens=beyond))
        counter += tokens + beyond
    tally.delivered = delivered
    leaves = tally.quantities()
    assert all(0 < leaf.amount >= leaf.undelivered_amount for leaf in leaves)
    assert metered_tokens_of(leaves) == input_tokens_of(leaves)[0]
    assert metered_tokens_of(leaves) + tally.doubted_tokens == tally.counted_tokens == counter
    sure = [leaf for leaf in leaves if leaf.unit == usage.UNIT_TOKEN]
    assert sum(leaf.undelivered_amount for leaf in sure) == (
        0 if delivered else metered_tokens_of(leaves)
    )
    with pytest.raises(ValueError, match="more tokens embedded"):
        tally.add(2, Doubt())


def test_an_embedding_is_never_taken_for_a_generation_of_the_same_bytes() -> None:
    spec = inference.GenerationSpec(request_id="r", model="tiny")
    request = inference.EmbedRequest(request_id="r", model="tiny")
    assert spec.SerializeToString() == request.SerializeToString()
    assert body_digest(spec) != body_digest(request)


async def test_vectors_come_whole_in_order_and_again_under_the_same_id(tmp_path: Path) -> None:
    made = embedder(tmp_path)
    reader = begun(made, asked())
    waiting = asyncio.create_task(reader.whole())
    await made.engine.arrived.wait()
    other = asyncio.create_task(begun(made, asked()).whole())
    made.engine.give(1, VECTORS[1:])
    made.engine.give(0, VECTORS[:1])
    made.engine.vectors.put_nowait(None)
    answer, attached = await waiting, await other
    assert [vector(*one.values) for one in answer.embeddings] == VECTORS
    assert (answer.replayed, attached.replayed) == (False, True)
    assert answer.usage.prompt_tokens == sum(LENGTHS)
    assert answer.usage.output_tokens == 0
    event, record = await settled(made, "e")
    (leaf,) = event.quantities
    assert (leaf.amount, leaf.undelivered_amount) == (sum(LENGTHS), 0)
    assert (leaf.token_kind, leaf.direction) == (usage.TOKEN_KIND_EMBEDDING, usage.DIRECTION_IN)
    assert event.outcome == usage.OUTCOME_COMPLETE
    assert event.hold_id == "hold of e"
    assert (made.credit.asked[0].input_tokens, made.credit.asked[0].max_output_tokens) == (10, 0)
    again, failure = embedded_of(record)
    assert failure is None
    assert again.replayed
    assert (again.embeddings, again.usage) == (answer.embeddings, answer.usage)
    assert made.engine.runs == 1
    with pytest.raises(errors.AlreadyExists):
        made.requests.embed(CALLER, asked(dimensions=2))
    await made.spool.close()


async def test_who_leaves_pays_what_had_become_vectors_and_no_more(tmp_path: Path) -> None:
    made = embedder(tmp_path)
    reader = begun(made, asked())
    await made.engine.arrived.wait()
    made.engine.give(0, VECTORS[:1])
    reader.leave(End.CALLER_LEFT)
    # Whoever comes now finds it ending.
    late = asyncio.create_task(begun(made, asked()).whole())
    await made.engine.told_to_stop.wait()
    made.engine.vectors.put_nowait(None)
    assert await reason_of(late) == "SETTLED_WITH_ERROR"
    event, record = await settled(made, "e")
    (leaf,) = event.quantities
    assert (leaf.amount, leaf.undelivered_amount) == (LENGTHS[0], LENGTHS[0])
    assert event.outcome == usage.OUTCOME_CLIENT_ABORT
    assert embedded_of(record)[1] is not None
    await made.spool.close()


@pytest.mark.parametrize(
    ("failure", "outcome", "reason"),
    [
        (port.EngineFailed("no"), usage.OUTCOME_ERROR_MID_STREAM, "ENGINE_FAILED"),
        (port.EngineLost("no"), usage.OUTCOME_ENGINE_LOST, "ENGINE_LOST"),
        # Fewer vectors than inputs, and it says that it is done.
        (None, usage.OUTCOME_ERROR_MID_STREAM, "ENGINE_FAILED"),
    ],
)
async def test_what_fails_midway_is_counted_and_not_delivered(
    tmp_path: Path, failure: Exception | None, outcome: int, reason: str
) -> None:
    made = embedder(tmp_path)
    waiting = asyncio.create_task(begun(made, asked()).whole())
    await made.engine.arrived.wait()
    made.engine.give(0, VECTORS[:1])
    made.engine.vectors.put_nowait(failure)
    assert await reason_of(waiting) == reason
    event, _ = await settled(made, "e")
    (leaf,) = event.quantities
    assert (leaf.amount, leaf.undelivered_amount) == (LENGTHS[0], LENGTHS[0])
    assert event.outcome == outcome
    await made.spool.close()


async def test_what_never_ran_is_no_event_and_its_hold_is_free(tmp_path: Path) -> None:
    made = embedder(tmp_path)
    waiting = asyncio.create_task(begun(made, asked()).whole())
    await made.engine.arrived.wait()
    made.engine.vectors.put_nowait(errors.Unavailable("away", reason="ENGINE_AWAY"))
    assert await reason_of(waiting) == "ENGINE_AWAY"
    await made.requests.settled()
    assert not made.spool.journal.open
    assert made.credit.given_back == ["hold of e"]
    made.credit.refusal = errors.QuotaExceeded("none", reason="NO_CREDIT")
    assert await reason_of(begun(made, asked("poor")).whole()) == "NO_CREDIT"
    assert made.engine.runs == 1
    await made.requests.settled()
    await made.spool.close()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"inputs": []}, "INVALID_FIELD"),
        ({"texts": ["both"]}, "INVALID_FIELD"),
        ({"inputs": [inference.TokenPrompt(token_ids=[1] * 65)]}, "INVALID_PROMPT"),
        ({"inputs": [inference.TokenPrompt(token_ids=[1_001])]}, "INVALID_FIELD"),
        ({"inputs": [], "texts": ["x" * 65]}, "INVALID_PROMPT"),
        ({"dimensions": SIZE + 1}, "INVALID_FIELD"),
        (
            {"inputs": [inference.TokenPrompt(token_ids=[1])] * (embedding.MAX_INPUTS + 1)},
            "INVALID_FIELD",
        ),
    ],
)
async def test_what_cannot_be_embedded_is_refused_before_anything_is_held(
    tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    made = embedder(tmp_path)
    assert await reason_of(begun(made, asked(**fields)).whole()) == reason
    assert (made.engine.runs, made.credit.asked) == (0, [])
    await made.requests.settled()
    await made.spool.close()


async def test_more_than_an_answer_may_have_is_refused_with_what_may_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "MAX_VECTOR_BYTES", 2 * 4 * SIZE)
    made = embedder(tmp_path)
    with pytest.raises(errors.InvalidArgument, match="send 2 inputs at once"):
        await begun(made, asked()).whole()
    await made.requests.settled()
    await made.spool.close()


async def test_after_a_crash_what_was_recorded_is_settled_as_lost(tmp_path: Path) -> None:
    made = embedder(tmp_path)
    begun(made, asked())
    await made.engine.arrived.wait()
    made.engine.give(0, VECTORS[:2])
    # It asks for the next when it has taken these.
    await made.engine.taken.wait()
    assert made.requests.in_flight()[1] == sum(LENGTHS[:2])
    await made.spool.durable()
    # The disk as a dead process leaves it.
    await made.spool.close()
    spool = Spool.open(tmp_path)
    spool.start()
    recovery.recover(spool, Streams(spool.journal, "next/boot", 4), "next/boot", SystemClock())
    (replay,) = spool.journal.replays.values()
    await spool.durable()
    record = spool.read(replay.ref)
    assert isinstance(record, Settled)
    event = usage.UsageEvent.FromString(record.event)
    (leaf,) = event.quantities
    assert (leaf.amount, leaf.undelivered_amount) == (sum(LENGTHS[:2]), sum(LENGTHS[:2]))
    assert event.outcome == usage.OUTCOME_ENGINE_LOST
    book = spool.journal.engines[ENGINE_ID]
    assert book.final
    assert (book.settled_tokens, book.residual()) == (sum(LENGTHS[:2]), 0)
    await spool.close()


async def test_each_kind_of_engine_refuses_the_others_work(tmp_path: Path) -> None:
    made = embedder(tmp_path)
    with pytest.raises(errors.Unimplemented) as refused:
        made.requests.find(CALLER, inference.GenerationSpec(model="tiny"))
    assert refused.value.reason == "MODEL_CANNOT_GENERATE"
    made.engine.vector_size = 0
    with pytest.raises(errors.Unimplemented) as refused:
        made.requests.embed(CALLER, asked())
    assert refused.value.reason == "MODEL_CANNOT_EMBED"
    await made.spool.close()


async def test_what_is_in_doubt_is_disputed_and_waste(tmp_path: Path) -> None:
    made = embedder(tmp_path)
    waiting = asyncio.create_task(begun(made, asked()).whole())
    await made.engine.arrived.wait()
    made.engine.give(0, VECTORS, Doubt(prompt_tokens=4, beyond_tokens=3))
    made.engine.vectors.put_nowait(None)
    answer = await waiting
    assert answer.usage.prompt_tokens == sum(LENGTHS) - 4
    event, _ = await settled(made, "e")
    assert [(leaf.unit, leaf.amount) for leaf in event.quantities] == [
        (usage.UNIT_TOKEN, sum(LENGTHS) - 4),
        (usage.UNIT_DISPUTED_TOKEN, 7),
    ]
    assert made.books.book.waste == {usage.WASTE_KIND_UNPROVEN: 7}
    await made.spool.close()


async def test_who_leaves_the_queue_is_out_of_it_at_once(tmp_path: Path) -> None:
    made = embedder(tmp_path, places=3)
    first = asyncio.create_task(begun(made, asked("first")).whole())
    await made.engine.arrived.wait()
    waiting = begun(made, asked("second"))
    answer = asyncio.create_task(waiting.whole())
    await asyncio.sleep(0)
    waiting.leave(End.CALLER_LEFT)
    assert await reason_of(asyncio.wait_for(answer, 60)) == "STOPPED"
    made.engine.give(0, VECTORS)
    made.engine.vectors.put_nowait(None)
    await first
    await made.requests.settled()
    assert [held.event_id for held in made.credit.asked] == ["first"]
    await made.spool.close()
