"""The lock of the broker's jars: read strictly, checked strictly."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tollbook.stack.jars import LOCK, Jar, JarError, check, read_lock


def test_the_lock_names_every_jar_once() -> None:
    jars = read_lock(LOCK.read_text())
    assert len(jars) == 45
    assert len({jar.filename for jar in jars}) == 45
    assert Jar("org.apache.kafka", "kafka_2.13", "4.4.0", "").filename in {
        jar.filename for jar in jars
    }


@pytest.mark.parametrize(
    "line",
    [
        "org.apache.kafka:kafka-clients:4.4.0",
        "org.apache.kafka:kafka-clients sha256:" + "0" * 64,
        "org.apache.kafka:kafka-clients:4.4.0 md5:" + "0" * 64,
        "org.apache.kafka:kafka-clients:4.4.0 sha256:" + "0" * 63,
    ],
)
def test_a_line_that_is_no_pin_is_named(line: str) -> None:
    with pytest.raises(JarError, match="line 2 is not"):
        read_lock(f"# jars\n{line}\n")


def test_an_empty_lock_is_an_error() -> None:
    with pytest.raises(JarError, match="no jar"):
        read_lock("# nothing\n")


def test_a_jar_with_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jar"
    path.write_bytes(b"jar")
    digest = hashlib.sha256(b"jar").hexdigest()
    check(Jar("g", "a", "1", digest), path)
    path.write_bytes(b"jaR")
    with pytest.raises(JarError, match=f"g:a:1 has SHA-256 .*the lock says {digest}"):
        check(Jar("g", "a", "1", digest), path)
