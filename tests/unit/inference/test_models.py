"""What is served: names, digests that follow every byte, and one clear line for what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from inference import tinymodel
from inference.adapters.models import ModelUnusable, discover


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    tinymodel.make(tmp_path)
    return tmp_path


def test_the_base_model_is_served_under_its_name(tiny: Path) -> None:
    base = discover(tiny / "model", "tiny")
    assert (base.target.served_name, base.target.base_name, base.target.adapter) == (
        "tiny",
        "tiny",
        "",
    )
    assert base.provenance.adapter_digest == b""
    elsewhere = discover(tiny / "model", "tiny", elsewhere=True).provenance
    assert (elsewhere.model_digest, elsewhere.tokenizer_digest) == (
        b"",
        base.provenance.tokenizer_digest,
    )


@pytest.mark.parametrize(
    ("file", "digest"),
    [
        ("model/model.safetensors", "model_digest"),
        ("model/config.json", "model_digest"),
        ("model/tokenizer.json", "tokenizer_digest"),
    ],
)
def test_one_changed_byte_changes_its_digest_and_no_other(
    tiny: Path, file: str, digest: str
) -> None:
    before = discover(tiny / "model", "tiny").provenance
    with (tiny / file).open("ab") as changed:
        changed.write(b" ")
    after = discover(tiny / "model", "tiny").provenance
    differing = {
        field.name
        for field in before.DESCRIPTOR.fields
        if getattr(before, field.name) != getattr(after, field.name)
    }
    assert differing == {digest}


def test_the_template_has_a_digest_of_its_own(tiny: Path) -> None:
    before = discover(tiny / "model", "tiny").provenance
    (tiny / "model" / "chat_template.jinja").write_text("{{ messages }}")
    after = discover(tiny / "model", "tiny").provenance
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
    ],
)
def test_what_is_missing_is_named(tiny: Path, missing: str) -> None:
    target = _without(tiny, missing)
    with pytest.raises(ModelUnusable) as refused:
        discover(tiny / "model", "tiny")
    # Weights may have any name, so the model's directory stands for them.
    named = target.parent if missing == "model/model.safetensors" else target
    assert str(named) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_configuration_that_is_no_object_is_refused(tiny: Path, content: str) -> None:
    (tiny / "model" / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelUnusable, match=r"config\.json"):
        discover(tiny / "model", "tiny")
