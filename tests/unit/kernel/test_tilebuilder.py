"""A log's directory: every file there and right, by our own reading and by a stranger's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.kernel import fsck

from kernel import merkle, tiles
from kernel.note import Checkpoint, SignerKey, sign_checkpoint
from kernel.tilebuilder import CHECKPOINT_PATH, TileBuilder

SIGNER = SignerKey("tollbook.test/usage-0", bytes(range(32)))
SIZES = (1, 255, 256, 257, 65_535, 65_536, 65_537)


def entry(number: int) -> bytes:
    return f"entry {number}".encode() * (number % 3)


def built(size: int) -> tuple[TileBuilder, dict[str, bytes]]:
    builder = TileBuilder()
    files: dict[str, bytes] = {}
    for number in range(size):
        files.update(builder.append(entry(number)))
    files.update(builder.partial())
    return builder, files


def write_log(directory: Path, size: int) -> tuple[Path, Path]:
    """Write a signed log of a size; gives its directory and its key file."""
    builder, files = built(size)
    log = directory / f"log-{size}"
    for path, data in files.items():
        (log / path).parent.mkdir(parents=True, exist_ok=True)
        (log / path).write_bytes(data)
    checkpoint = Checkpoint(SIGNER.name, size, builder.root())
    log.mkdir(exist_ok=True)
    (log / CHECKPOINT_PATH).write_bytes(sign_checkpoint(checkpoint, SIGNER))
    key_file = directory / "key.pub"
    key_file.write_text(f"{SIGNER.verifier}\n")
    return log, key_file


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 600, 65_537, 65_793])
def test_the_files_are_those_of_the_specification(size: int) -> None:
    builder, files = built(size)
    assert builder.size == size
    assert set(files) == {
        *(tiles.tile_path(*tile) for tile in tiles.tiles_of(size)),
        *(tiles.bundle_path(*bundle) for bundle in tiles.bundles_of(size)),
    }
    hashes = [merkle.leaf_hash(entry(number)) for number in range(size)]
    assert builder.root() == merkle.root_of(hashes)
    for level, index, width in tiles.tiles_of(size):
        data = files[tiles.tile_path(level, index, width)]
        assert len(data) == width * 32
        if level == 0:
            assert data == b"".join(hashes[index * 256 : index * 256 + width])
        else:
            assert data == b"".join(
                tiles.tile_root(files[tiles.tile_path(level - 1, index * 256 + at)])
                for at in range(width)
            )


@given(st.lists(st.binary(max_size=30), max_size=600), st.integers(0, 600))
def test_partial_files_may_be_asked_for_at_any_size(leaves: list[bytes], at: int) -> None:
    builder = TileBuilder()
    files: dict[str, bytes] = {}
    for number, leaf in enumerate(leaves):
        if number == at:
            list(builder.partial())
        files.update(builder.append(leaf))
    files.update(builder.partial())
    read = [
        leaf
        for bundle in tiles.bundles_of(len(leaves))
        for leaf in tiles.decode_bundle(files[tiles.bundle_path(*bundle)])
    ]
    assert read == leaves


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 600, 65_535, 65_536, 65_793])
def test_a_builder_goes_on_from_the_files_of_its_edge(size: int) -> None:
    builder, files = built(size)
    edge = files.get(tiles.bundle_path(size // 256, size % 256), b"")
    again = TileBuilder.resume(
        size, tiles.decode_bundle(edge), lambda *tile: files[tiles.tile_path(*tile)]
    )
    assert (again.size, again.root()) == (builder.size, builder.root())
    for number in range(size, size + 300):
        assert again.append(entry(number)) == builder.append(entry(number))
    assert list(again.partial()) == list(builder.partial())
    assert again.root() == builder.root()


def test_an_edge_that_is_not_whole_is_refused() -> None:
    _, files = built(300)
    leaves = tiles.decode_bundle(files["tile/entries/001.p/44"])
    with pytest.raises(ValueError, match="not 43 leaves"):
        TileBuilder.resume(300, leaves[:43], lambda *tile: files[tiles.tile_path(*tile)])
    with pytest.raises(ValueError, match="is not whole"):
        TileBuilder.resume(300, leaves, lambda *tile: files[tiles.tile_path(*tile)][:-1])


def test_a_leaf_too_large_is_refused_and_changes_nothing() -> None:
    builder = TileBuilder()
    with pytest.raises(ValueError, match="65535"):
        builder.append(b"x" * 65_536)
    assert builder.size == 0
    assert list(builder.partial()) == []


@pytest.mark.parametrize("size", SIZES)
def test_a_strangers_checker_accepts_the_log(size: int, tmp_path: Path) -> None:
    program = fsck.find()
    verdict = fsck.run(program, *write_log(tmp_path, size))
    assert verdict.ok, verdict.said


@pytest.mark.parametrize(
    ("size", "path", "at"),
    [
        (257, "tile/entries/000", 100),
        (257, "tile/entries/001.p/1", 5),
        (257, "tile/0/000", 100),
        (257, "tile/1/000.p/1", 0),
        (257, "checkpoint", 30),
        (65_537, "tile/entries/200", 100),
        (65_537, "tile/1/000", 8000),
        (65_537, "tile/2/000.p/1", 0),
    ],
)
def test_a_strangers_checker_refuses_a_flipped_byte(
    size: int, path: str, at: int, tmp_path: Path
) -> None:
    program = fsck.find()
    log, key_file = write_log(tmp_path, size)
    data = bytearray((log / path).read_bytes())
    data[at] ^= 1
    (log / path).write_bytes(data)
    verdict = fsck.run(program, log, key_file)
    assert verdict.refused, verdict.said
    assert not verdict.ok
