"""What the documents say is so: links lead somewhere, excerpts are the files', settings and reasons
are the code's, cards can be read, and the plain check of an export agrees with the auditor.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings
from tests.unit.audit import world

from inference import settings as inference_settings
from kernel import merkle
from kernel.settings import ServiceSettings
from ledger import settings as ledger_settings
from pricing import settings as pricing_settings
from pricing.domain.card_yaml import parse_card
from tollbook.cli.lazy import is_there
from tollbook.cli.registry import COMMANDS
from witness import settings as witness_settings

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [
    ROOT / "README.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Settings that are read elsewhere than in a settings.py.
ELSEWHERE = {
    "TOLLBOOK_CACHE",
    "TOLLBOOK_TRACE",
    "TOLLBOOK_SECRET",
    "TOLLBOOK_OPERATOR_KEY",
    "TOLLBOOK_ADMIN_SECRET",
    "TOLLBOOK_FSCK",
    "TOLLBOOK_S3_SERVER",
}
# A step's own default, beside that of the process which the table speaks of.
DEFAULTS_OF_STEPS = {
    (witness_settings.WitnessKeySettings, "witness_policy"),
    (witness_settings.WitnessSettings, "witness_policy"),
}


def fenced(text: str, language: str) -> list[str]:
    """Blocks of code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    # Paths of this repository, named in code.
    named = re.findall(
        r"`((?:services|protos|docs|deploy|tests|tools|requirements)/[^\s`*]+)`", text
    )
    missing += [path for path in named if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_is_an_excerpt_of_an_example_that_a_test_runs(page: Path) -> None:
    examples = [path.read_text() for path in EXAMPLES.glob("*.py")]
    for block in fenced(page.read_text(), "python"):
        assert any(block in example for example in examples), block


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_cards_can_be_read(page: Path) -> None:
    text = page.read_text()
    cards = fenced(text, "yaml") + re.findall(r"<<'YAML'\n(.*?)^YAML$", text, re.M | re.S)
    for card in cards:
        assert parse_card(card).lines


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading of a page of docs/."""
    section = (
        (ROOT / "docs" / page).read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    )
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_each_situation_that_is_counted_names_a_test_that_is_there() -> None:
    situations = [row[0] for row in rows("metering.md", "What is counted")]
    shown = rows("metering.md", "What shows it")
    assert len(situations) > 20
    for situation, (name, _) in zip(situations, shown, strict=True):
        assert situation.startswith(name)
    for _, tests in shown:
        for path, function in re.findall(r"`([^`]+)::([^`]+)`", tests):
            assert f"def {function}(" in (ROOT / "tests" / path).read_text(), (path, function)
        assert "::" in tests


def settings_classes() -> list[type[BaseSettings]]:
    modules = (inference_settings, ledger_settings, pricing_settings, witness_settings)
    return [
        found
        for module in modules
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, ServiceSettings)
    ]


def known_settings() -> set[str]:
    return {f"TOLLBOOK_{name.upper()}" for kind in settings_classes() for name in kind.model_fields}


def test_every_setting_stands_in_the_table_with_its_default() -> None:
    rows = dict(
        re.findall(
            r"^\| `(TOLLBOOK_\w+)` \|[^|]*\|([^|]*)\|",
            (ROOT / "deploy" / "README.md").read_text(),
            re.MULTILINE,
        )
    )
    assert rows.keys() == known_settings()
    for kind in settings_classes():
        for name, field in kind.model_fields.items():
            said = rows[f"TOLLBOOK_{name.upper()}"].strip().strip("`")
            if (kind, name) in DEFAULTS_OF_STEPS:
                continue
            if field.is_required():
                assert said == "", name
            else:
                meant = {"": "empty", "None": "none"}.get(str(field.default), str(field.default))
                assert said == meant, name


SETTING = re.compile(r"TOLLBOOK_[A-Z_]*[A-Z]")


def of_sizes() -> set[str]:
    """How large and how long benches and exhibits are is said by settings of their own."""
    return {
        name
        for folder in (ROOT / "bench", ROOT / "tests" / "museum")
        for source in folder.glob("*.py")
        for name in SETTING.findall(source.read_text())
    }


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_page_speaks_of_a_setting_that_is_not_there(page: Path) -> None:
    assert set(SETTING.findall(page.read_text())) <= (
        known_settings() | of_sizes() | ELSEWHERE | {"TOLLBOOK_LEDGER", "TOLLBOOK_PRICING"}
    )


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_are_there(page: Path) -> None:
    said = re.findall(r"(?:`|^\s*|\$ |bin/)tollbook ([a-z-]+)", page.read_text(), re.MULTILINE)
    known = {name for name, entry in COMMANDS.items() if is_there(entry)}
    assert set(said) <= known


def test_every_command_stands_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for name, entry in COMMANDS.items():
        if is_there(entry):
            assert re.search(rf"`{name}\b", text), name


def test_reasons_that_callers_are_told_of_are_the_services_own() -> None:
    sources = [
        *(ROOT / "services" / "inference").rglob("*.py"),
        *(ROOT / "services" / "kernel").glob("*.py"),
    ]
    given = [
        line.partition("reason=")[2] for path in sources for line in path.read_text().splitlines()
    ]
    known = {reason for text in given for reason in re.findall(r'"([A-Z_]+)"', text)}
    table = re.findall(
        r"^\| [A-Z_]+ \| ([A-Z_, ]+) \|", (ROOT / "docs" / "callers.md").read_text(), re.M
    )
    said = {reason for cell in table for reason in re.findall(r"[A-Z_]+", cell)}
    assert said
    assert said <= known
    # Of the services' other reasons none reaches a caller of inference.
    assert known - said <= {
        "ADAPTERS_FULL",
        "ADAPTER_EXISTS",
        "ADAPTER_IN_USE",
        "ADDRESS_IN_USE",
        "BAD_ADAPTER",
        "NOT_ADMIN",
        "NOT_OF_THE_HOUSE",
        "NO_ADAPTER",
        "NO_ADAPTERS",
        "REFUSED",
        "UNKNOWN_CONTEXT",
    }


def root_of(log: Path, *size: str) -> tuple[int, str]:
    """Exit status and output of docs/examples/root.py."""
    done = subprocess.run(
        [sys.executable, "-I", str(EXAMPLES / "root.py"), str(log), *size],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 700])
def test_the_plain_root_is_the_trees(tmp_path: Path, size: int) -> None:
    entries = [b"entry %d" % number for number in range(size)]
    world.write_log(tmp_path, "usage-0", entries)
    status, said = root_of(tmp_path)
    assert status == 0
    assert merkle.root_of(map(merkle.leaf_hash, entries)).hex() in said
    if size > 1:
        status, said = root_of(tmp_path, str(size // 2))
        assert status == 0
        assert merkle.root_of(map(merkle.leaf_hash, entries[: size // 2])).hex() in said
    if size:
        bundle = next(path for path in (tmp_path / "tile" / "entries").rglob("*") if path.is_file())
        data = bundle.read_bytes()
        bundle.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        status, said = root_of(tmp_path)
        assert status == 1
        assert "ANOTHER root" in said


def test_the_auditors_shell_lines_do_what_the_page_says(tmp_path: Path) -> None:
    missing = [name for name in ("openssl", "jq", "xxd", "sha256sum") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    made = world.World()
    made.change(world.card(), world.account("acme"), world.grant("g1", "acme", 10**12))
    producer = world.Producer("p/1/0")
    events = (world.usage_event(f"e{number}", "acme", output=9) for number in range(75))
    made.take("usage-0", *(producer.record(event) for event in events))
    made.serve()
    made.cut()
    made.write(tmp_path)
    (tmp_path / "verifiers").rename(tmp_path / "verifier-keys")
    script = "\n".join(fenced((ROOT / "docs" / "auditors.md").read_text(), "sh"))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdict, leaf, first, digest, served = (
        line.removesuffix("  -") for line in done.stdout.splitlines()
    )
    assert verdict == "Signature Verified Successfully"
    assert leaf == first
    assert digest == served


def test_alerts_are_on_metrics_that_are_there() -> None:
    """As Prometheus names them: dots are underscores, and a counter ends in `_total`."""
    made = {
        name.replace(".", "_")
        for source in (ROOT / "services").rglob("*.py")
        for name in re.findall(r'METRIC: Final = "([a-z._]+)"', source.read_text())
    }
    rules = (ROOT / "deploy" / "alerts.yaml").read_text()
    used = re.findall(r"tollbook_[a-z_]+", "".join(re.findall(r"expr: (.*)", rules)))
    assert used
    assert {name.removesuffix("_total") for name in used} <= made
