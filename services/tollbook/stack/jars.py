"""The embedded broker's jars: fetched once a machine by coordinate, each checked by its hash.

Owns deploy/kafka/jars.lock's meaning and the folder of jars in the shared cache. The transport is
jgo's (it knows where artifacts are published); what to fetch is the lock's alone, because jgo's own
mediation of dependencies does not give Kafka's class path.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tollbook.cache import cache_home, cached_folder

KAFKA_VERSION = "4.4.0"
LOCK = Path(__file__).resolve().parents[3] / "deploy" / "kafka" / "jars.lock"
DOWNLOAD_MB = 44
_THREADS = 8
_ATTEMPTS = 3
_TIMEOUT_S = 60


class JarError(Exception):
    """A jar could not be fetched, or is not the one the lock names."""


@dataclass(frozen=True)
class Jar:
    """One line of the lock."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """The name it has in our folder; group and artifact, since artifact alone is not unique."""
        return f"{self.group}.{self.artifact}-{self.version}.jar"

    def __str__(self) -> str:
        """The coordinate as published."""
        return f"{self.group}:{self.artifact}:{self.version}"


def read_lock(text: str) -> list[Jar]:
    """Parses the lock. Raises JarError naming the line that is not a coordinate and a hash."""
    jars: list[Jar] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        coordinate, _, pin = line.partition(" ")
        parts = coordinate.split(":")
        algorithm, _, digest = pin.strip().partition(":")
        if len(parts) != 3 or algorithm != "sha256" or len(digest) != 64:
            raise JarError(
                f"line {number} is not `group:artifact:version sha256:HEX`: {line!r}; "
                "restore deploy/kafka/jars.lock"
            )
        group, artifact, version = parts
        jars.append(Jar(group, artifact, version, digest))
    if not jars:
        raise JarError("the lock names no jar; restore deploy/kafka/jars.lock")
    return jars


def jars_folder_name() -> str:
    """The folder's name in the shared cache; it changes with the lock."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    return f"kafka-{KAFKA_VERSION}-{digest}"


def check(jar: Jar, path: Path) -> None:
    """Raises JarError unless the file is the one the lock names."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != jar.sha256:
        raise JarError(f"{jar} has SHA-256 {found}, the lock says {jar.sha256}; nothing was kept")


def _fetch(jar: Jar, repository: Path, folder: Path) -> None:
    """Brings one jar into `folder`. A dropped connection is tried again; a wrong hash is not."""
    from jgo.maven import MavenContext

    for attempt in range(1, _ATTEMPTS + 1):
        # A repository of its own for each try: jgo refuses to write over what a broken try left.
        context = MavenContext(
            repo_cache=repository / f"{jar.filename}.{attempt}", timeout=_TIMEOUT_S
        )
        try:
            project = context.project(jar.group, jar.artifact)
            got = project.at_version(jar.version).artifact().resolve()
            break
        except Exception as error:
            if attempt == _ATTEMPTS:
                raise JarError(
                    f"{jar} could not be fetched in {_ATTEMPTS} tries ({error}); "
                    "check the network and run `make setup` again"
                ) from error
    else:
        raise AssertionError("a try either succeeds or raises")
    path = Path(got)
    check(jar, path)
    os.replace(path, folder / jar.filename)


def ensure_jars() -> Path:
    """The folder with every jar of the lock, fetched now if this machine has none yet.

    Raises JarError when one cannot be had or has another hash; then no folder is left behind.
    """
    jars = read_lock(LOCK.read_text())

    def fill(folder: Path) -> None:
        repository = folder / "fetching"
        with ThreadPoolExecutor(_THREADS) as pool:
            for done in [pool.submit(_fetch, jar, repository, folder) for jar in jars]:
                done.result()
        shutil.rmtree(repository)

    return cached_folder(jars_folder_name(), fill)


def class_path() -> str:
    """The broker's class path, also before its jars are here."""
    return str(cache_home() / jars_folder_name() / "*")


def main() -> None:
    """Fetch what lacks and print the folder; set-up runs this in the environment it made."""
    try:
        print(ensure_jars())
    except JarError as problem:
        sys.exit(f"jars: {problem}")
