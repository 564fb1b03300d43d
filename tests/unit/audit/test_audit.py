"""The auditor on whole exports: all agrees, and each kind of lie is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.audit import world as worlds
from tests.unit.audit.world import Producer, World, account, grant, small_world, usage_event

from audit.__main__ import main
from audit.auditor import audit
from audit.findings import UnusableError
from audit.report import Report
from kernel import leaf as leaves
from kernel.note import SignerKey
from ledger.domain.admission import ACCEPTED
from tollbook.ledger.v1 import ledger_pb2 as ledger
from tollbook.pricing.v1 import control_pb2


def audited(world: World, root: Path) -> Report:
    return audit(*world.write(root))


def texts(report: Report) -> list[str]:
    return [str(found) for found in report.findings]


def test_an_honest_export_agrees(tmp_path: Path) -> None:
    report = audited(small_world(), tmp_path)
    assert texts(report) == []
    assert report.ok
    by_log = {log.log: (log.size, log.counts) for log in report.logs}
    assert by_log["usage-0"][0] == 45
    counts = by_log["usage-0"][1]
    assert (counts.accepted, counts.duplicate, counts.conflict, counts.rejected) == (41, 1, 1, 2)
    acme = next(line for line in report.accounts if line.account_id == "acme")
    # By hand: 40 requests of 100..139 plain, 0..39 cached and 7 output tokens, and one of 1 plain.
    charged = (sum(range(100, 140)) + 1) * 150_000 + sum(range(40)) * 75_000 + 40 * 7 * 600_000
    assert acme.charged_pico == charged
    assert acme.available_pico == 5 * 10**12 - charged
    assert (acme.requests, acme.output_tokens) == (41, 280)
    initech = next(line for line in report.accounts if line.account_id == "initech")
    assert (initech.suspense_entries, initech.charged_pico) == (1, 0)
    engine = report.engines[0]
    assert (engine.engine_id, engine.waste, engine.residual) == ("engine-1", 13, 0)
    assert report.cuts == 2


def test_a_log_of_several_tile_levels_agrees(tmp_path: Path) -> None:
    world = World(partitions=1)
    world.change(worlds.card(), worlds.account("acme"))
    producer = worlds.Producer("p/1/0")
    for start in range(0, 66_000, 11_000):
        world.change(grant(f"g{start}", "acme", 1))
        world.take(
            "usage-0",
            *(
                producer.record(usage_event(f"e{number}", "acme", plain=1))
                for number in range(start, start + 11_000)
            ),
        )
        if start == 33_000:
            world.cut()
    world.serve()
    world.cut()
    report = audited(world, tmp_path)
    assert texts(report) == []
    assert report.accounts[0].charged_pico == 66_000 * 150_000


def test_a_system_without_usage_agrees(tmp_path: Path) -> None:
    world = World(partitions=1)
    world.change(worlds.account("acme"))
    world.serve()
    world.cut()
    assert texts(audited(world, tmp_path)) == []


# A service that lies, and signs its lie ----------------------------------------------------------


def test_a_duplicate_that_was_charged_twice(tmp_path: Path) -> None:
    world = World(partitions=1)
    world.change(worlds.card(), worlds.account("acme"))
    producer = worlds.Producer("p/1/0")
    event = usage_event("e1", "acme", plain=10)
    world.take("usage-0", producer.record(usage_event("e0", "acme")), producer.record(event))
    world.put("usage-0", producer.record(event), ACCEPTED, 0)
    world.serve()
    world.cut()
    first = audited(world, tmp_path).first
    assert first is not None
    assert first.where == "usage-0 position 2"
    assert "stands as ACCEPTED" in first.what
    assert "DUPLICATE (IDENTITY_REPEAT)" in first.what


def test_a_rejected_record_that_was_accepted_and_an_accepted_one_rejected(tmp_path: Path) -> None:
    world = World(partitions=1)
    world.change(worlds.card(), worlds.account("acme"))
    producer = worlds.Producer("p/1/0")
    world.take("usage-0", producer.record(usage_event("e0", "acme")))
    world.put("usage-0", b"rubbish", ACCEPTED, 0)
    world.put(
        "usage-0",
        producer.record(usage_event("e1", "acme", plain=5)),
        ledger.DISPOSITION_REJECTED,
        ledger.REASON_MALFORMED,
    )
    world.serve()
    world.cut()
    report = audited(world, tmp_path)
    assert [found.where for found in report.findings] == [
        "usage-0 position 1",
        "usage-0 position 2",
    ]
    assert "by the rules and the log before it, it is ACCEPTED" in texts(report)[1]


def test_one_event_in_two_logs(tmp_path: Path) -> None:
    world = World()
    world.change(worlds.card(), worlds.account("acme"))
    event = usage_event("e1", "acme", plain=10)
    one, two = worlds.Producer("p/1/0"), worlds.Producer("p/1/1")
    world.take("usage-0", one.record(usage_event("e0", "acme")), one.record(event))
    world.take("usage-1", two.record(event))
    world.serve()
    world.cut()
    report = audited(world, tmp_path)
    assert texts(report) == [
        "usage-1 position 0: the same event stands accepted at usage-0 position 1 too:"
        " it is charged twice"
    ]


def test_a_record_of_a_closed_stream_that_never_came(tmp_path: Path) -> None:
    world = World(partitions=1)
    world.change(worlds.card(), worlds.account("acme"))
    producer, still_open = worlds.Producer("p/1/0"), worlds.Producer("p/2/0")
    records = [producer.record(usage_event(f"e{number}", "acme")) for number in range(9)]
    lost = [still_open.record(usage_event(f"f{number}", "acme")) for number in range(3)]
    world.take("usage-0", *records[:3], *records[4:6], records[8], producer.close(), lost[2])
    world.serve()
    world.cut()
    report = audited(world, tmp_path)
    assert texts(report) == [
        "usage-0: the stream 'p/1/0' was closed and lacks 3, 6 to 7: records are lost"
    ]
    assert report.notes == ["usage-0: the open stream 'p/2/0' has not yet had 0 to 1"]


def test_a_grant_appended_twice_under_one_key(tmp_path: Path) -> None:
    world = small_world()
    world.append(world.control, grant("g9", "acme", 1), "key-2")
    world.serve()
    world.cut()
    assert texts(audited(world, tmp_path))[0] == (
        "control position 7: its idempotency key stands at position 2 too"
    )


def test_a_balance_that_was_served_and_is_not_in_the_logs(tmp_path: Path) -> None:
    world = small_world()
    assert world.served is not None
    world.served.balances[0].available.amount_pico = "6000000000000"
    [told] = texts(audited(world, tmp_path))
    assert told.startswith(
        "served.json account 'acme': available 6000000000000 pico USD was served, the logs give"
    )


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("suspense_entries", "account 'initech': suspense_entries 0 was served, the logs give 1"),
        ("missing", "account 'globex': no balance was served"),
        ("stranger", "account 'nobody': the control log has no such account"),
        ("twice", "account 'acme': it stands twice"),
        ("digest", "was served, the logs give"),
        ("tokens", "account 'globex': output_tokens 1 was served, the logs give 1770"),
        ("position", "usage-1 size 1000 were served; the last cut vouches for 63"),
    ],
)
def test_every_part_of_what_was_served_is_compared(field: str, told: str, tmp_path: Path) -> None:
    world = small_world()
    served = world.served
    assert served is not None
    match field:
        case "suspense_entries":
            served.balances[2].suspense_entries = 0
        case "missing":
            del served.balances[1]
        case "stranger":
            served.balances.add(account_id="nobody")
        case "twice":
            served.balances.add().CopyFrom(served.balances[0])
        case "digest":
            served.balances_digest = b"?" * 32
        case "tokens":
            served.balances[1].usage.output_tokens = 1
        case _:
            served.positions[2].size = 1000
    [found] = texts(audited(world, tmp_path))
    assert found.startswith("served.json")
    assert told in found


def _of(cut: control_pb2.Cut, log: str) -> control_pb2.LogCut:
    return next(part for part in cut.logs if part.log == log)


def _root(cut: control_pb2.Cut) -> None:
    _of(cut, "usage-1").root = b"?" * 32


def _too_large(cut: control_pb2.Cut) -> None:
    _of(cut, "usage-1").size = 64


def _shrunk(cut: control_pb2.Cut) -> None:
    part = _of(cut, "usage-0")
    part.size = 40
    del part.pins[1:]


def _pin_ahead(cut: control_pb2.Cut) -> None:
    _of(cut, "usage-1").pins[-1].control_size = 8


def _pin_moved(cut: control_pb2.Cut) -> None:
    _of(cut, "usage-0").pins[0].control_size = 3


def _pin_back(cut: control_pb2.Cut) -> None:
    _of(cut, "usage-0").pins[-1].control_size = 3


def _pin_missing(cut: control_pb2.Cut) -> None:
    del _of(cut, "usage-1").pins[0]


def _pin_beyond(cut: control_pb2.Cut) -> None:
    _of(cut, "usage-1").pins.add(from_position=63, control_size=7)


def _digest(cut: control_pb2.Cut) -> None:
    cut.balances_digest = b"?" * 32


def _conserved(cut: control_pb2.Cut) -> None:
    cut.conservation.engine_tokens -= 5


def _log_left_out(cut: control_pb2.Cut) -> None:
    del cut.logs[1]


def _unknown_log(cut: control_pb2.Cut) -> None:
    cut.logs.add(log="usage-9", size=1, root=b"?" * 32).pins.add()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_root, "cuts position 2: it has another root of usage-1 at size 63 than the entries give"),
        (_too_large, "usage-1: the cut at cuts position 2 has 64 entries, its checkpoint 63"),
        (_shrunk, "cuts position 2: usage-0 has 40 entries in it and 45 in cuts position 1"),
        (_pin_ahead, "cuts position 2: usage-1's pin from position 0 says control size 8; the"),
        (_pin_moved, "cuts position 2: usage-0's pins below position 45 are not those of cuts"),
        (_pin_back, "cuts position 2: usage-0's pin from position 44 (control size 3) does not"),
        (_pin_missing, "cuts position 2: usage-1 has no pin from position 0 on"),
        (_pin_beyond, "cuts position 2: usage-1's pin from position 63 is beyond its size 63"),
        (_digest, "cuts position 2: the digest of all balances is 3f3f"),
        (_conserved, "cuts position 2: conservation: it says engine_tokens"),
        (_log_left_out, "cuts position 2: it does not speak of usage-0, of which cuts position 1"),
        (_unknown_log, "usage-9: the cut at cuts position 2 speaks of it, and it is not in"),
    ],
)
def test_a_cut_that_says_what_is_not_so(change: object, told: str, tmp_path: Path) -> None:
    world = small_world()
    assert callable(change)
    world.cut(change, restate=True)
    first = audited(world, tmp_path).first
    assert first is not None
    assert str(first).startswith(told)


def _not_so_many(cut: control_pb2.Cut) -> None:
    _of(cut, "usage-0").earlier_pins = 9


def _pin_put_between(cut: control_pb2.Cut) -> None:
    _of(cut, "usage-1").pins.add(from_position=30, control_size=7)


def _said_again_otherwise(cut: control_pb2.Cut) -> None:
    part = _of(cut, "usage-0")
    part.earlier_pins = 1
    part.pins.add(from_position=44, control_size=5)


def _pin_going_back(cut: control_pb2.Cut) -> None:
    _of(cut, "usage-1").pins.add(from_position=63, control_size=2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_not_so_many, "cuts position 2: usage-0 has 9 pins in earlier cuts by it, they have 2"),
        (_pin_put_between, "cuts position 2: usage-1's pins below position 63 are not those of"),
        (_said_again_otherwise, "cuts position 2: usage-0's pins below position 45 are not those"),
        (_pin_going_back, "cuts position 2: usage-1's pin from position 63 (control size 2) does"),
    ],
)
def test_a_cut_that_adds_pins_that_do_not_follow(change: object, told: str, tmp_path: Path) -> None:
    world = small_world()
    assert callable(change)
    world.cut(change)
    assert str(audited(world, tmp_path).first).startswith(told)


def test_pins_are_said_once_in_all_cuts_together(tmp_path: Path) -> None:
    world = small_world()
    for number in range(50):
        world.change(account(f"later-{number}"))
        world.take("usage-0", Producer(f"p/{number}").record(usage_event(f"n{number}", "acme")))
        if number % 10 == 9:
            world.cut()
    cuts = [control_pb2.Cut.FromString(leaves.decode(raw).value) for raw in world.cuts]
    said = [part for cut in cuts for part in cut.logs if part.log == "usage-0"]
    assert sum(len(part.pins) for part in said) == len(world.usage["usage-0"].pins)
    assert [len(part.pins) for part in said[-5:]] == [10] * 5
    world.serve()
    assert audited(world, tmp_path).ok
    # One that says all of them again, as earlier versions did, fits among them.
    world.cut(restate=True)
    world.cut()
    assert audited(world, tmp_path / "again").ok


@pytest.mark.parametrize("most", [1, 3, 7])
def test_more_new_pins_than_one_cut_holds(most: int, tmp_path: Path) -> None:
    world = small_world()
    for number in range(20):
        world.change(account(f"later-{number}"))
        for log in ("usage-0", "usage-1"):
            producer = Producer(f"p/{log}/{number}")
            world.take(log, producer.record(usage_event(f"{log}-{number}", "acme")))
    world.cut(most_pins=most)
    sizes = []
    for raw in world.cuts[2:]:
        cut = control_pb2.Cut.FromString(leaves.decode(raw).value)
        sizes.append(sum(len(part.pins) for part in cut.logs))
        assert cut.pins_only == (len(sizes) < len(world.cuts) - 2)
    assert sum(sizes) == 40
    assert max(sizes) <= most
    report = audited(world, tmp_path)
    assert report.ok, report.as_text()
    # A system that stopped between the parts is audited by its last whole cut.
    del world.cuts[-1]
    last = audited(world, tmp_path / "stopped")
    assert last.cut is not None
    assert last.cut.position == 1


def test_a_history_that_was_rewritten_and_signed_again(tmp_path: Path) -> None:
    """Entries, tiles and checkpoint agree; the earlier cut remembers."""
    world = small_world()
    told = world.usage["usage-0"].leaves
    told[10], told[11] = told[11], told[10]
    first = audited(world, tmp_path).first
    assert first is not None
    # The swapped offsets are out of order, and the first cut has another root.
    assert first.where in ("usage-0 position 11", "usage-0 positions 0 to 43")
    report = audited(world, tmp_path / "again")
    assert "usage-0 positions 0 to 43: the entries give another root at size 44" in "\n".join(
        texts(report)
    )


def test_a_rewritten_tail_is_found_between_two_cuts(tmp_path: Path) -> None:
    world = small_world()
    leaves = world.usage["usage-0"].leaves
    changed = bytearray(leaves[44])
    changed[-1] ^= 1
    leaves[44] = bytes(changed)
    wheres = [found.where for found in audited(world, tmp_path).findings]
    assert "usage-0 position 44" in wheres


def test_an_engine_that_generated_more_than_was_settled(tmp_path: Path) -> None:
    world = small_world()
    producer = worlds.Producer("p/9/0")
    world.take("usage-0", producer.reading("engine-2", 5, 1, final=False))
    world.take("usage-0", producer.reading("engine-2", 9, 1, final=True))
    world.serve()
    world.cut()
    [told] = texts(audited(world, tmp_path))
    assert told == (
        "conservation of engine 'engine-2': it generated 9 tokens; events have 0 and waste 1:"
        " 8 are unaccounted for"
    )


def test_an_engine_that_still_runs_may_have_tokens_in_flight(tmp_path: Path) -> None:
    world = small_world()
    world.take("usage-0", worlds.Producer("p/9/0").reading("engine-2", 5, 1, final=False))
    world.serve()
    world.cut()
    report = audited(world, tmp_path)
    assert report.ok
    assert report.engines[1].residual == 4


def test_no_cut_is_a_finding(tmp_path: Path) -> None:
    world = small_world()
    world.cuts.clear()
    assert texts(audited(world, tmp_path)) == [
        "cuts: there is no cut: nothing vouches for pins and balances"
    ]


def test_a_control_record_that_stands_aside(tmp_path: Path) -> None:
    lines = "".join(
        f"  - {{id: m{number}, match: {{model: model-{number}}}, per: 1000, price: 1}}\n"
        for number in range(1500)
    )
    world = World(partitions=1)
    text = worlds.CARD.replace("lines:\n", "lines:\n" + lines)
    world.change(worlds.card(text), worlds.account("acme"))
    assert len(world.asides) == 1
    producer = worlds.Producer("p/1/0")
    world.take("usage-0", producer.record(usage_event("e", "acme", plain=2, model="model-7")))
    world.serve()
    world.cut()
    report = audited(world, tmp_path)
    assert texts(report) == []
    assert report.accounts[0].charged_pico == 2 * 10**9
    [digest] = world.asides
    for data in (b"other", None):
        path = tmp_path / "export" / "aside" / digest
        path.unlink() if data is None else path.write_bytes(data)
        first = audit(tmp_path / "export", tmp_path / "verifiers").first
        assert first is not None
        assert first.where == "control position 0"
        assert digest in first.what


# Input that cannot be used -----------------------------------------------------------------------


def test_what_cannot_be_audited_says_why(tmp_path: Path) -> None:
    export, keys = small_world().write(tmp_path)
    stranger = tmp_path / "stranger"
    stranger.write_text(f"{SignerKey.generate('other.example/usage-0').verifier}\n")
    same_names = tmp_path / "same-names"
    other = SignerKey.generate(worlds.ORIGIN)
    same_names.write_text(
        "".join(
            f"{other.named(f'{worlds.ORIGIN}/{name}').verifier}\n" for name in ("control", "cuts")
        )
    )
    empty = tmp_path / "empty"
    empty.write_text("# no keys\n\n")
    private = tmp_path / "private"
    private.write_text(f"{worlds.SIGNER}\n")
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"\xff\xfe")
    for key_file, said in (
        (stranger, "is this the right key file"),
        (same_names, "is this the right key file"),
        (empty, "holds no key"),
        (private, "is a private key"),
        (rubbish, "is not text"),
        (tmp_path / "absent", "cannot read the key file"),
        (export / "logs/control/checkpoint", "not a verifier key"),
    ):
        with pytest.raises(UnusableError, match=said):
            audit(export, key_file)
    (tmp_path / "bare").mkdir()
    (tmp_path / "void" / "logs").mkdir(parents=True)
    for root, said in (
        (tmp_path / "nowhere", "there is no directory"),
        (tmp_path / "bare", "is no export"),
        (tmp_path / "void", "holds no log"),
    ):
        with pytest.raises(UnusableError, match=said):
            audit(root, keys)


def test_another_rating_version_is_not_guessed_at(tmp_path: Path) -> None:
    world = small_world()

    def newer(cut: control_pb2.Cut) -> None:
        cut.rating_version += 1

    world.cut(newer)
    with pytest.raises(UnusableError, match="rating version"):
        audited(world, tmp_path)


def test_a_key_that_lacks_one_log_names_it(tmp_path: Path) -> None:
    export, keys = small_world().write(tmp_path)
    keys.write_text("".join(line for line in keys.open() if "usage-1" not in line))
    first = audit(export, keys).first
    assert str(first) == (
        "usage-1 checkpoint: the key file has no key of 'tollbook.test/one/usage-1'"
    )


def test_a_rotated_key_is_one_more_line(tmp_path: Path) -> None:
    export, keys = small_world().write(tmp_path)
    newer = SignerKey.generate(f"{worlds.ORIGIN}/control")
    keys.write_text(f"# the newer one\n{newer.verifier}\n\n{keys.read_text()}")
    assert audit(export, keys).ok


def test_logs_of_two_systems_are_not_one_export(tmp_path: Path) -> None:
    export, keys = small_world().write(tmp_path)
    other = worlds.SIGNER.named("tollbook.test/two/usage-1")
    from kernel.note import Checkpoint, open_checkpoint, sign_checkpoint

    path = export / "logs/usage-1/checkpoint"
    known = open_checkpoint(
        path.read_bytes(), worlds.SIGNER.named(f"{worlds.ORIGIN}/usage-1").verifier
    )
    path.write_bytes(sign_checkpoint(Checkpoint(other.name, known.size, known.root), other))
    keys.write_text(f"{keys.read_text()}{other.verifier}\n")
    assert "checkpoints: they are of several systems" in str(audit(export, keys).first)


# The command -------------------------------------------------------------------------------------


def test_the_command_says_its_verdict_in_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export, keys = small_world().write(tmp_path)
    assert main([str(export), "--key", str(keys)]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1].startswith("audit: all agrees (")
    assert main([str(export), "--key", str(keys), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert told["first"] is None
    assert told["cut"]["balances_digest"] == told["cut"]["recomputed_digest"]
    path = export / "logs/usage-0/tile/entries/000.p/45"
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)
    assert main([str(export), "--key", str(keys)]) == 1
    assert "audit: FAILED, first at usage-0 position 0" in capsys.readouterr().out
    assert main([str(export), "--key", str(keys), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["findings"][0]["position"] == 0
    assert captured.err.startswith("audit: usage-0 position 0: ")
    assert main([str(tmp_path / "nowhere"), "--key", str(keys)]) == 2
    assert capsys.readouterr().err.startswith("audit: there is no directory")
    assert main([str(tmp_path / "nowhere"), "--key", str(keys), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False
