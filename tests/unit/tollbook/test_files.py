"""Small files: whole or absent; the first to write once wins."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

from tollbook.stack.files import locked, write_once, write_whole


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_whole(path, "one")
    write_whole(path, "two")
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_to_write_once_wins(tmp_path: Path) -> None:
    path = tmp_path / "id"
    assert write_once(path, "mine") == "mine"
    assert write_once(path, "yours") == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_many_that_write_once_agree(tmp_path: Path) -> None:
    start = threading.Barrier(8, timeout=60)
    seen: list[str] = []

    def one(name: str) -> None:
        start.wait()
        seen.append(write_once(tmp_path / "id", name))

    threads = [threading.Thread(target=one, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len(set(seen)) == 1


def test_a_lock_keeps_the_second_out_until_the_first_is_done(tmp_path: Path) -> None:
    inside: list[str] = []
    first_is_in, second_asked = threading.Event(), threading.Event()

    def second() -> None:
        first_is_in.wait(60)
        second_asked.set()
        with locked(tmp_path / "lock"):
            inside.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(tmp_path / "lock"):
        first_is_in.set()
        second_asked.wait(60)
        inside.append("first")
    thread.join()
    assert inside == ["first", "second"]
