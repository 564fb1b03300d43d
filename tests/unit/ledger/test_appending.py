"""Append logs: one key is one record for ever, against a naive log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kernel import leaf as leaves
from kernel.errors import AlreadyExists, FailedPrecondition
from kernel.merkle import leaf_hash, root_of
from kernel.tiles import decode_bundle
from ledger.domain.appending import KnownKey, Placed, Wanted, plan_append
from ledger.domain.tree import TreeBuilder

requests = st.builds(
    Wanted,
    st.sampled_from("abcdef"),
    st.sampled_from([b"one", b"two"]),
    st.one_of(st.none(), st.integers(0, 12)),
)


@given(st.lists(st.lists(requests, max_size=6), max_size=6))
def test_groups_of_any_size_answer_as_one_at_a_time(groups: list[list[Wanted]]) -> None:
    tree = TreeBuilder()
    known: dict[str, KnownKey] = {}
    naive: list[tuple[str, bytes]] = []
    data: list[bytes] = []
    for group in groups:
        plan = plan_append("control", tree, group, known, now_ms=7)
        for request, answer in zip(group, plan.answers, strict=True):
            where = next((at for at, (key, _) in enumerate(naive) if key == request[0]), None)
            if where is not None:
                if naive[where][1] == request.payload:
                    assert answer == Placed(where, replayed=True)
                else:
                    assert isinstance(answer, AlreadyExists)
            elif request.expected_size not in (None, len(naive)):
                assert isinstance(answer, FailedPrecondition)
            else:
                assert answer == Placed(len(naive), replayed=False)
                naive.append((request.idempotency_key, request.payload))
        for key in plan.keys:
            known[key.idempotency_key] = KnownKey(key.position, key.payload_digest)
        if plan.batch is not None:
            assert plan.batch.counts == (plan.batch.entries, 0, 0, 0)
            data += [leaf for chunk in plan.batch.chunks for leaf in decode_bundle(chunk.data)]
    assert [(leaf.key.decode(), leaf.value) for leaf in map(leaves.decode, data)] == naive
    assert [leaves.decode(leaf).offset for leaf in data] == list(range(len(naive)))
    assert tree.size == len(naive)
    assert tree.root() == root_of(map(leaf_hash, data))


def test_a_payload_too_large_for_a_leaf_is_kept_aside() -> None:
    large = b"x" * 200_000
    plan = plan_append("cuts", TreeBuilder(), [Wanted("k", large, None)], {}, now_ms=7)
    assert plan.batch is not None
    assert plan.batch.asides == [(0, large)]
    [leaf] = decode_bundle(plan.batch.chunks[0].data)
    assert leaves.decode(leaf).aside


def test_nothing_new_is_nothing_to_write() -> None:
    tree = TreeBuilder()
    first = plan_append("control", tree, [Wanted("k", b"v", None)], {}, now_ms=7)
    known = {key.idempotency_key: KnownKey(key.position, key.payload_digest) for key in first.keys}
    again = plan_append("control", tree, [Wanted("k", b"v", 0)], known, now_ms=8)
    assert again.batch is None
    assert again.answers == [Placed(0, replayed=True)]
