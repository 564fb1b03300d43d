"""vLLM's own parser of calls, as the HTTP door uses it: the same calls in any pieces."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration import call_parser_probe as probe

from inference import tinymodel

pytestmark = [pytest.mark.integration, pytest.mark.engine]


def test_hermes_is_read_in_any_pieces_and_no_parser_is_said_to_be_none(tmp_path: Path) -> None:
    tinymodel.make(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.call_parser_probe", str(tmp_path / "model")],
        cwd=Path(__file__).resolve().parents[2],
        env={"PYTHONPATH": ":".join(sys.path), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *read, refused = map(json.loads, filter(None, done.stdout.splitlines()))
    wanted = json.loads(probe.ARGUMENTS)
    assert read == len(probe.PIECES) * [
        {
            "content": "Let me look.",
            "names": ["weather", "weather"],
            "arguments": [wanted, wanted],
            "ends_as_calls": True,
        }
    ]
    assert re.search("no parser 'herms'; there are .*hermes", refused)
