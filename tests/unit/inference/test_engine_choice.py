"""Settings that cannot work together are refused at the start, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inference.adapters.models import ModelUnusable
from inference.entrypoints import engines
from inference.settings import EngineSettings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tool_parser": "hermes", "engine_url": "http://a:1"}, "TOLLBOOK_TOOL_PARSER needs"),
        ({"tool_parser": "hermes", "engine_task": "embed"}, "calls no tools"),
        ({"adapters": Path("/x"), "engine_task": "embed"}, "TOLLBOOK_ADAPTERS"),
    ],
)
def test_what_would_refuse_every_call_does_not_start(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelUnusable, match=said):
        engines.make(EngineSettings(model=Path("/nowhere"), **given))
