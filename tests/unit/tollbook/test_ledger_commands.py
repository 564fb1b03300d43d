"""What `ledger verify` and `ledger rebuild` say when they cannot begin: one line, and never the
status of a log that differs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.integration.free_port import free_port

from kernel.errors import TollbookError
from kernel.note import SignerKey
from tollbook.cli.ledger_rebuild import rebuild
from tollbook.cli.ledger_verify import verify
from tollbook.stack.ports import HOST


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a stack, and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "LEDGER_POSTGRES", "VERIFIER_KEYS", "TILES_URL", "KAFKA"):
        monkeypatch.delenv(f"TOLLBOOK_{name}", raising=False)
    Path("keys").write_text(f"{SignerKey.generate('here/usage-0').verifier}\n")


def away() -> str:
    """DSN of a database that is not there."""
    return f"postgresql://nobody@{HOST}:{free_port()}/none"


def test_verify_without_a_stack_needs_a_database_by_name_and_nothing_else() -> None:
    done = CliRunner().invoke(verify, [])
    assert (done.exit_code, done.stderr[:24]) == (2, "tollbook: the stack in /")
    done = CliRunner().invoke(verify, ["--postgres", away(), "--key", "keys"])
    assert done.exit_code == 2
    assert done.stderr.startswith("tollbook: the database does not answer: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--postgres", "nonsense", "--key", "keys"],
            "database cannot be asked: in --postgres or TOLLBOOK_LEDGER_POSTGRES, this is no DSN",
        ),
        (["--postgres", "postgresql://x/y"], "cannot read the key file verifier-keys"),
        (
            ["--postgres", "postgresql://x/y", "--key", "keys", "--tiles", "http://x/"],
            "tiles are kept at file:///DIRECTORY or s3://BUCKET/PREFIX, not at 'http://x/'",
        ),
    ],
)
def test_verify_says_what_it_cannot_use_with_status_2(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(verify, arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_rebuild_without_tiles_says_how_to_name_them() -> None:
    done = CliRunner().invoke(rebuild, ["--postgres", away(), "--key", "keys"])
    assert isinstance(done.exception, TollbookError)
    assert str(done.exception).startswith("no published tiles are named: give --tiles file:///")


def test_rebuild_says_what_it_cannot_use(tmp_path: Path) -> None:
    tiles = ["--key", "keys", "--tiles", (tmp_path / "tiles").as_uri()]
    for dsn, said in {
        "nonsense": "cannot be asked: in --postgres or",
        away(): "not answer",
    }.items():
        done = CliRunner().invoke(rebuild, ["--postgres", dsn, *tiles])
        assert isinstance(done.exception, TollbookError)
        assert said in str(done.exception)
