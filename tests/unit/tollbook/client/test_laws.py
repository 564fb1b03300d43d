"""Laws of the client's pure parts: pauses, the splice of several tries, the request."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollbook.client.retries import Retries, pause_ms
from tollbook.client.shapes import Delta, Finished, Message, Sampling, Started, TokenIds
from tollbook.client.splice import Changed, Splice
from tollbook.client.wire import spec_of

RETRIES = st.builds(
    Retries,
    tries=st.integers(1, 100),
    first_ms=st.integers(0, 5_000),
    longest_ms=st.integers(0, 60_000),
    total_ms=st.integers(0, 600_000),
)
DRAWS = st.floats(0, 1, exclude_max=True)


@given(RETRIES, st.lists(st.tuples(st.none() | st.integers(0, 10_000), DRAWS), max_size=120))
def test_pauses_keep_to_what_was_asked_and_to_every_bound(
    retries: Retries, failures: list[tuple[int | None, float]]
) -> None:
    elapsed_ms, tried = 0, 0
    for asked_ms, draw in failures:
        tried += 1
        pause = pause_ms(retries, tried, elapsed_ms, asked_ms, draw)
        if pause is None:
            break
        assert (asked_ms or 0) <= pause <= (asked_ms or 0) + retries.longest_ms
        elapsed_ms += pause
        assert elapsed_ms <= retries.total_ms
    assert tried <= retries.tries


@pytest.mark.parametrize(
    "bounds", [{"tries": 0}, {"tries": 101}, {"first_ms": -1}, {"total_ms": 10**9}]
)
def test_retries_have_bounds(bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bounds))} is "):
        Retries(**bounds)


# An answer: for each choice, its tokens with the text that comes with each.
ANSWERS = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.text(max_size=3)), max_size=12), min_size=1, max_size=3
)


def a_try(
    data: st.DataObject, answer: list[list[tuple[int, str]]]
) -> list[Started | Delta | Finished]:
    """The whole answer as one stream, in pieces and an order of its own."""
    queues: list[list[Started | Delta | Finished]] = []
    for choice, tokens in enumerate(answer):
        cuts = data.draw(st.lists(st.integers(0, len(tokens)), max_size=4).map(sorted))
        edges = [0, *cuts, len(tokens)]
        queue: list[Started | Delta | Finished] = []
        for start, end in pairwise(edges):
            part = tokens[start:end]
            text = "".join(piece for _, piece in part)
            queue.append(Delta(choice, text, tuple(token for token, _ in part), end))
        queue.append(Finished(choice, "FINISH_REASON_STOP", len(tokens)))
        queues.append(queue)
    order = data.draw(
        st.permutations([number for number, queue in enumerate(queues) for _ in queue])
    )
    return [Started("r", 1, False), *(queues[number].pop(0) for number in order)]


@given(st.data(), ANSWERS)
def test_whatever_is_cut_each_token_and_character_comes_once(
    data: st.DataObject, answer: list[list[tuple[int, str]]]
) -> None:
    splice = Splice()
    got: list[object] = []
    for last in (False, False, True):
        splice.begin_try()
        pieces = a_try(data, answer)
        upto = len(pieces) if last else data.draw(st.integers(0, len(pieces)))
        got += [new for piece in pieces[:upto] if (new := splice.take(piece)) is not None]
    assert sum(isinstance(piece, Started) for piece in got) == 1
    for choice, tokens in enumerate(answer):
        deltas = [x for x in got if isinstance(x, Delta) and x.choice == choice]
        assert [token for x in deltas for token in x.token_ids] == [token for token, _ in tokens]
        assert "".join(x.text for x in deltas) == "".join(text for _, text in tokens)
        (end,) = [x for x in got if isinstance(x, Finished) and x.choice == choice]
        # Nothing of a choice comes after its end.
        assert all(got.index(x) < got.index(end) for x in deltas)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.lists(st.integers(0, 3), max_size=12),
    st.integers(1, 4),
)
def test_only_a_true_repeat_is_spliced(first: list[int], second: list[int], size: int) -> None:
    """Read `first`, then a whole other try of `second`: refused unless it begins with `first`."""
    splice = Splice()
    splice.take(Delta(0, "", tuple(first), len(first)))
    splice.begin_try()
    fresh: list[int] = []

    def replay() -> None:
        for at in range(0, len(second), size):
            part = tuple(second[at : at + size])
            new = splice.take(Delta(0, "", part, at + len(part)))
            fresh.extend(new.token_ids if isinstance(new, Delta) else ())
        splice.take(Finished(0, "FINISH_REASON_STOP", len(second)))

    if second[: len(first)] == first:
        replay()
        assert first + fresh == second
    else:
        with pytest.raises(Changed):
            replay()


@given(
    st.one_of(
        st.text(max_size=20),
        st.lists(st.integers(0, 2**32 - 1), max_size=5).map(TokenIds),
        st.lists(st.builds(Message, st.sampled_from(["user", "system"]), st.text()), max_size=3),
    ),
    st.builds(
        Sampling,
        max_tokens=st.none() | st.integers(0, 2**31 - 1),
        n=st.none() | st.integers(0, 64),
        seed=st.none() | st.integers(-(2**63), 2**63 - 1),
        temperature=st.none() | st.floats(0, 10, width=32),
        stop=st.lists(st.text(max_size=4), max_size=3).map(tuple),
        ignore_eos=st.booleans(),
    ),
)
def test_a_request_says_what_was_given_and_no_more(
    prompt: str | TokenIds | list[Message], sampling: Sampling
) -> None:
    spec = spec_of(prompt, "tiny", sampling, "r-1")
    assert (spec.request_id, spec.model) == ("r-1", "tiny")
    match prompt:
        case str():
            assert [(m.role, m.content) for m in spec.chat.messages] == [("user", prompt)]
        case TokenIds():
            assert spec.WhichOneof("prompt") == "tokens"
            assert list(spec.tokens.token_ids) == prompt.token_ids
        case _:
            assert spec.WhichOneof("prompt") == "chat"
            assert [Message(m.role, m.content) for m in spec.chat.messages] == prompt
    for name in ("max_tokens", "n", "seed", "temperature", "top_p", "json_schema"):
        given_value = getattr(sampling, name)
        assert spec.sampling.HasField(name) == (given_value is not None)
        if given_value is not None:
            assert getattr(spec.sampling, name) == given_value
    assert tuple(spec.sampling.stop) == sampling.stop
    assert spec.sampling.ignore_eos == sampling.ignore_eos
