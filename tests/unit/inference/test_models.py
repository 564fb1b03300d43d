"""What is served: names, digests that follow every byte, and one clear line for what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from inference import tinymodel
from inference.adapters.models import ModelUnusable, adapters_of, discover


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    tinymodel.make(tmp_path)
    return tmp_path


def test_base_and_adapter_are_served_under_their_names(tiny: Path) -> None:
    served = discover(tiny / "model", "tiny", tiny / "adapters")
    assert list(served) == ["tiny", "tiny-support"]
    base, adapter = served["tiny"], served["tiny-support"]
    assert (base.target.base_name, base.target.adapter) == ("tiny", "")
    assert (adapter.target.base_name, adapter.target.adapter) == ("tiny", "tiny-support")
    assert base.provenance.adapter_digest == b""
    assert len(adapter.provenance.adapter_digest) == 32
    assert adapter.provenance.model_digest == base.provenance.model_digest


def test_a_folder_without_the_base_name_gets_it(tiny: Path) -> None:
    (tiny / "adapters" / "tiny-support").rename(tiny / "adapters" / "sales")
    assert [adapter.name for adapter in adapters_of("tiny", tiny / "adapters")] == ["tiny-sales"]


def test_no_directory_of_adapters_is_no_adapters(tiny: Path) -> None:
    assert adapters_of("tiny", None) == []
    assert list(discover(tiny / "model", "tiny", None)) == ["tiny"]


@pytest.mark.parametrize(
    ("file", "digest"),
    [
        ("model/model.safetensors", "model_digest"),
        ("model/config.json", "model_digest"),
        ("model/tokenizer.json", "tokenizer_digest"),
        ("adapters/tiny-support/adapter_model.safetensors", "adapter_digest"),
        ("adapters/tiny-support/adapter_config.json", "adapter_digest"),
    ],
)
def test_one_changed_byte_changes_its_digest_and_no_other(
    tiny: Path, file: str, digest: str
) -> None:
    before = discover(tiny / "model", "tiny", tiny / "adapters")["tiny-support"].provenance
    with (tiny / file).open("ab") as changed:
        changed.write(b" ")
    after = discover(tiny / "model", "tiny", tiny / "adapters")["tiny-support"].provenance
    differing = {
        field.name
        for field in before.DESCRIPTOR.fields
        if getattr(before, field.name) != getattr(after, field.name)
    }
    assert differing == {digest}


def test_the_template_has_a_digest_of_its_own(tiny: Path) -> None:
    before = discover(tiny / "model", "tiny", None)["tiny"].provenance
    (tiny / "model" / "chat_template.jinja").write_text("{{ messages }}")
    after = discover(tiny / "model", "tiny", None)["tiny"].provenance
    assert before.template_digest != after.template_digest
    assert before.tokenizer_digest == after.tokenizer_digest


def _without(tiny: Path, name: str) -> Path:
    target = tiny / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    return target


@pytest.mark.parametrize(
    "missing",
    [
        "model/config.json",
        "model/model.safetensors",
        "adapters/tiny-support/adapter_config.json",
        "adapters/tiny-support/adapter_model.safetensors",
        "adapters",
    ],
)
def test_what_is_missing_is_named(tiny: Path, missing: str) -> None:
    target = _without(tiny, missing)
    with pytest.raises(ModelUnusable) as refused:
        discover(tiny / "model", "tiny", tiny / "adapters")
    # Weights may have any name, so the model's directory stands for them.
    named = target.parent if missing == "model/model.safetensors" else target
    assert str(named) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_configuration_that_is_no_object_is_refused(tiny: Path, content: str) -> None:
    (tiny / "model" / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelUnusable, match=r"config\.json"):
        discover(tiny / "model", "tiny", None)


@pytest.mark.parametrize("rank", [0, -1, 513, "8", None, 8.5])
def test_an_adapters_rank_is_checked(tiny: Path, rank: object) -> None:
    config = tiny / "adapters" / "tiny-support" / "adapter_config.json"
    config.write_text(json.dumps({"r": rank}))
    with pytest.raises(ModelUnusable, match="rank"):
        adapters_of("tiny", tiny / "adapters")


def test_two_folders_for_one_name_are_refused(tiny: Path) -> None:
    shutil.copytree(tiny / "adapters" / "tiny-support", tiny / "adapters" / "support")
    with pytest.raises(ModelUnusable, match="both served as 'tiny-support'"):
        adapters_of("tiny", tiny / "adapters")
