"""The shared cache: a folder is there whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tollbook.cache import cache_home, cached_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOLLBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_place_is_the_setting_then_xdg_then_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_home() == tmp_path / "cache"
    monkeypatch.delenv("TOLLBOOK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_home() == tmp_path / "xdg" / "tollbook"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_home() == tmp_path / "me" / ".cache" / "tollbook"


def test_a_folder_is_filled_once(cache: Path) -> None:
    fills: list[Path] = []

    def fill(folder: Path) -> None:
        fills.append(folder)
        (folder / "a").write_text("1")

    assert cached_folder("thing-1", fill) == cached_folder("thing-1", fill) == cache / "thing-1"
    assert len(fills) == 1
    assert (cache / "thing-1" / "a").read_text() == "1"


def test_a_failed_fill_leaves_nothing(cache: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("1")
        raise OSError("the line dropped")

    with pytest.raises(OSError, match="the line dropped"):
        cached_folder("thing-1", fill)
    assert list(cache.iterdir()) == []


def test_two_that_fill_at_once_both_get_the_winners(cache: Path) -> None:
    both_are_filling = threading.Barrier(2, timeout=60)
    results: list[str] = []

    def fill(folder: Path) -> None:
        both_are_filling.wait()
        (folder / "who").write_text(threading.current_thread().name)

    def one() -> None:
        results.append((cached_folder("thing-1", fill) / "who").read_text())

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert results[0] == results[1]
    assert [path.name for path in cache.iterdir()] == ["thing-1"]
