"""A hand that alters an export: whatever byte it changes, the auditor names the place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.audit import world as worlds
from tests.unit.audit.world import World, small_world, usage_event
from tests.unit.kernel import fsck

from audit.auditor import audit
from audit.findings import Finding
from kernel import tiles


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export whose usage-0 has two levels of tiles: 600 entries."""
    root = tmp_path_factory.mktemp("honest")
    large_world().write(root)
    return root


def large_world() -> World:
    world = small_world()
    producer = worlds.Producer("p/2/0")
    world.take(
        "usage-0",
        *(
            producer.record(usage_event(f"d{number}", "acme", plain=number))
            for number in range(600 - len(world.usage["usage-0"].leaves))
        ),
    )
    world.serve()
    world.cut()
    return world


@pytest.fixture
def copy(honest: Path, tmp_path: Path) -> Path:
    shutil.copytree(honest, tmp_path / "copy")
    return tmp_path / "copy"


def flip(path: Path, at: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


def found(root: Path) -> list[Finding]:
    return list(audit(root / "export", root / "verifiers").findings)


def bounds(root: Path, log: str, bundle: int, width: int) -> list[tuple[int, int]]:
    """(start, end) of each entry's bytes, its length included, in a bundle's file."""
    path = root / "export/logs" / log / tiles.bundle_path(bundle, width)
    data = path.read_bytes()
    at, places = 0, []
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        places.append((at, end))
        at = end
    return places


def test_the_copy_agrees(copy: Path) -> None:
    assert found(copy) == []


@pytest.mark.parametrize(
    ("log", "bundle", "width", "entry"),
    [
        ("usage-0", 0, 256, 0),
        ("usage-0", 0, 256, 17),
        ("usage-0", 0, 256, 255),
        ("usage-0", 1, 256, 3),
        ("usage-0", 2, 88, 0),
        ("usage-0", 2, 88, 87),
        ("usage-1", 0, 63, 40),
        ("control", 0, 7, 0),
        ("control", 0, 7, 6),
        ("cuts", 0, 3, 1),
    ],
)
def test_every_byte_of_an_entry(log: str, bundle: int, width: int, entry: int, copy: Path) -> None:
    """Its length, its header, its key, its value: the position is named exactly, and first."""
    start, end = bounds(copy, log, bundle, width)[entry]
    path = copy / "export/logs" / log / tiles.bundle_path(bundle, width)
    whole = path.read_bytes()
    for at in {*range(start, min(start + 24, end), 3), start + 1, (start + end) // 2, end - 1}:
        flip(path, at, 1 << at % 8)
        first = found(copy)[0]
        assert (first.place, first.position) == (log, bundle * 256 + entry), (at, str(first))
        assert first.end_position in (None, bundle * 256 + entry + 1)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("log", "tile", "hash_at", "positions"),
    [
        ("usage-0", "tile/0/000", 17, "position 17"),
        ("usage-0", "tile/0/001", 0, "position 256"),
        ("usage-0", "tile/0/002.p/88", 87, "position 599"),
        ("usage-0", "tile/1/000.p/2", 1, "positions 256 to 511"),
        ("control", "tile/0/000.p/7", 3, "position 3"),
        ("cuts", "tile/0/000.p/3", 2, "position 2"),
    ],
)
def test_a_byte_of_a_tile(log: str, tile: str, hash_at: int, positions: str, copy: Path) -> None:
    path = copy / "export/logs" / log / tile
    whole = path.read_bytes()
    for at in (0, 9, 31):
        flip(path, hash_at * 32 + at)
        findings = found(copy)
        assert len(findings) == 1, findings
        assert findings[0].place == f"{log} {tile}"
        assert f"hash {hash_at} is altered" in findings[0].what
        assert positions in findings[0].what
        path.write_bytes(whole)


def test_the_bytes_of_a_checkpoint(copy: Path) -> None:
    path = copy / "export/logs/usage-1/checkpoint"
    whole = path.read_bytes()
    unused = 0
    for at in [*range(0, len(whole), 6), *range(len(whole) - 8, len(whole))]:
        flip(path, at)
        findings = found(copy)
        if findings:
            assert findings[0].place == "usage-1 checkpoint", (at, findings[0])
        else:
            unused += 1
        path.write_bytes(whole)
    # Base64's last letter has bits that mean nothing: the note is the same note.
    assert unused <= 1


def test_the_bytes_of_what_was_served(copy: Path) -> None:
    path = copy / "export/served.json"
    whole = path.read_bytes()
    unfound: list[bytes] = []
    for at, byte in enumerate(whole):
        # Every digit, and a letter here and there.
        if not chr(byte).isdigit() and (at % 11 or chr(byte).isspace()):
            continue
        flip(path, at)
        findings = found(copy)
        if findings:
            assert findings[0].place.startswith("served.json"), (at, findings[0])
        else:
            unfound.append(whole[at - 9 : at + 1])
        path.write_bytes(whole)
    # usage-1 ends with a stream's closing, so what is true at 63 is as true at 62.
    assert unfound == [b'"size": "63'[-10:]]


def test_every_byte_of_a_record_aside(copy: Path) -> None:
    [path] = (copy / "export/aside").iterdir()
    for at in (0, 35_000, 69_999):
        flip(path, at)
        [finding] = found(copy)
        assert finding.where == "usage-0 position 43"
        assert path.name in finding.what
        flip(path, at)
    path.write_bytes(path.read_bytes() + b"x")
    assert found(copy)[0].where == "usage-0 position 43"
    path.unlink()
    assert "is missing" in found(copy)[0].what


def _all_files(root: Path) -> Iterator[Path]:
    for path in sorted((root / "export").rglob("*")):
        if path.is_file() and path.name != "served.json":
            yield path


def test_a_file_that_is_gone_or_cut_short_or_grown(copy: Path) -> None:
    for path in _all_files(copy):
        whole = path.read_bytes()
        name = str(path.relative_to(copy / "export"))
        log = name.split("/")[1]
        for data in (None, whole[:-1], whole + b"\0", b""):
            if data is None:
                path.unlink()
            else:
                path.write_bytes(data)
            findings = found(copy)
            assert findings, (name, data and len(data))
            told = f"{findings[0]}"
            assert log in told, (name, told)
            path.write_bytes(whole)


def test_an_entry_and_its_tile_altered_together(copy: Path) -> None:
    """A forger who mends the tile too is betrayed by the tile above."""
    log = copy / "export/logs/usage-0"
    path = log / "tile/entries/001"
    start, end = bounds(copy, "usage-0", 1, 256)[44]
    flip(path, end - 1)
    _mend(log, 1, 256)
    first = found(copy)[0]
    assert (first.place, first.position, first.end_position) == ("usage-0", 256, 512)
    assert "tile/1/000.p/2" in first.what
    assert start < end


def _mend(log: Path, bundle: int, width: int) -> None:
    from kernel.merkle import leaf_hash

    entries = tiles.decode_bundle((log / tiles.bundle_path(bundle, width)).read_bytes())
    (log / tiles.tile_path(0, bundle, width)).write_bytes(
        b"".join(leaf_hash(entry) for entry in entries)
    )


def test_an_entry_and_every_tile_above_altered_together(copy: Path) -> None:
    """Only the signature is left to betray it, and the cut that stands nearest."""
    log = copy / "export/logs/usage-0"
    path = log / "tile/entries/000"
    flip(path, bounds(copy, "usage-0", 0, 256)[20][1] - 1)
    _mend(log, 0, 256)
    upper = log / "tile/1/000.p/2"
    upper.write_bytes(tiles.tile_root((log / "tile/0/000").read_bytes()) + upper.read_bytes()[32:])
    findings = found(copy)
    assert "the checkpoint signs" in findings[0].what
    assert findings[0].place == "usage-0"
    ranges = [(f.position, f.end_position) for f in findings if "another root" in f.what]
    assert ranges == [(0, 44)]


def test_entries_swapped_left_out_and_put_in(copy: Path) -> None:
    log = copy / "export/logs/usage-0"
    path = log / "tile/entries/001"
    entries = tiles.decode_bundle(path.read_bytes())
    swapped = [*entries[:7], entries[8], entries[7], *entries[9:]]
    path.write_bytes(tiles.encode_bundle(swapped))
    assert [f.position for f in found(copy)[:2]] == [256 + 7, 256 + 7] or found(copy)[
        0
    ].position == 256 + 7
    path.write_bytes(tiles.encode_bundle(entries[:100] + entries[101:]))
    assert found(copy)[0].where == "usage-0 position 356"
    path.write_bytes(tiles.encode_bundle([*entries[:9], b"new", *entries[9:]]))
    assert found(copy)[0].where == "usage-0 position 265"


def test_a_whole_older_export_put_in_place_of_one_log(honest: Path, copy: Path) -> None:
    """A rollback: an older, rightly signed state of one log. The cut is newer."""
    older = small_world()
    log = copy / "export/logs/usage-0"
    shutil.rmtree(log)
    worlds.write_log(log, "usage-0", older.usage["usage-0"].leaves)
    first = found(copy)[0]
    assert first.place == "usage-0"
    assert "has 600 entries, its checkpoint 45" in first.what
    assert found(honest) == []


def test_a_log_put_in_place_of_another(copy: Path) -> None:
    logs = copy / "export/logs"
    shutil.rmtree(logs / "usage-1")
    shutil.copytree(logs / "usage-0", logs / "usage-1")
    first = found(copy)[0]
    assert first.place == "usage-1 checkpoint"
    assert "not of this one" in first.what


def test_a_log_that_is_gone(copy: Path) -> None:
    shutil.rmtree(copy / "export/logs/usage-1")
    assert found(copy)[0].place == "usage-1"
    for name in ("control", "cuts"):
        shutil.rmtree(copy / "export/logs" / name)
        assert name in [f.place for f in found(copy)]


@settings(max_examples=60)
@given(st.data())
def test_any_flipped_bit_anywhere_is_found_and_its_log_named(
    honest: Path, data: st.DataObject
) -> None:
    paths = [path for path in _all_files(honest) if path.name != "checkpoint"]
    path = data.draw(st.sampled_from(paths))
    at = data.draw(st.integers(0, path.stat().st_size - 1))
    mask = 1 << data.draw(st.integers(0, 7))
    flip(path, at, mask)
    try:
        findings = found(honest)
    finally:
        flip(path, at, mask)
    assert findings
    name = path.relative_to(honest / "export").parts[1]
    assert name in str(findings[0])


def test_a_stranger_accepts_every_log_of_an_export_and_refuses_the_altered(
    copy: Path, tmp_path: Path
) -> None:
    program = fsck.find()
    for line in (copy / "verifiers").read_text().splitlines():
        name = line.split("+")[0].rpartition("/")[2]
        key = tmp_path / name
        key.write_text(f"{line}\n")
        log = copy / "export/logs" / name
        verdict = fsck.run(program, log, key)
        assert verdict.ok, verdict.said
    flip(copy / "export/logs/usage-0/tile/entries/001", 500)
    assert fsck.run(program, copy / "export/logs/usage-0", tmp_path / "usage-0").refused
