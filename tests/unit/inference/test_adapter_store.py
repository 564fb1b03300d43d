"""Adapters on the disk: kept by their content, and never half of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from inference import tinymodel
from inference.adapters.adapter_store import AdapterStore
from inference.adapters.models import ModelUnusable
from kernel import errors

FOLDER = "tiny-support"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tinymodel.make(tmp_path)
    return tmp_path / "adapters"


@pytest.fixture
def store(source: Path, tmp_path: Path) -> AdapterStore:
    return AdapterStore("tiny", tmp_path / "model", source, tmp_path / "kept", 64)


def test_what_is_taken_is_a_copy_named_by_its_content(store: AdapterStore, source: Path) -> None:
    adapter = store.take(FOLDER)
    assert adapter.path.name == adapter.digest.hex()
    assert (adapter.name, adapter.rank, adapter.account_id) == ("tiny-support", 8, "")
    shutil.rmtree(source / FOLDER)
    assert (adapter.path / "adapter_model.safetensors").is_file()
    store.drop(adapter)
    assert list(adapter.path.parent.iterdir()) == []


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_one_changed_byte_is_another_adapter(store: AdapterStore, source: Path, file: str) -> None:
    before = store.take(FOLDER)
    path = source / FOLDER / file
    data = bytearray(path.read_bytes())
    if file.endswith("json"):
        data += b" "
    else:
        data[-1] ^= 1
    path.write_bytes(data)
    after = store.take(FOLDER)
    assert after.digest != before.digest
    # The first is what it was.
    assert (before.path / file).read_bytes() != (after.path / file).read_bytes()


def test_a_folder_without_the_base_name_gets_it(store: AdapterStore, source: Path) -> None:
    (source / FOLDER).rename(source / "sales")
    (source / ".hidden").mkdir()
    assert store.folders() == ["sales"]
    assert store.take("sales").name == "tiny-sales"


def test_an_adapter_says_whose_it_is(store: AdapterStore, source: Path) -> None:
    everybodys = store.take(FOLDER)
    (source / FOLDER / "tollbook.json").write_text('{"account": "acme", "project": "p"}')
    acmes = store.take(FOLDER)
    assert (acmes.account_id, acmes.project_id) == ("acme", "p")
    assert acmes.digest != everybodys.digest


@pytest.mark.parametrize(
    "owner",
    ["{}", '{"acount": "acme"}', '{"account": ""}', '{"account": 5}', "[", '{"project": "p"}'],
)
def test_an_owner_that_cannot_be_read_makes_it_nobodys(
    store: AdapterStore, source: Path, owner: str
) -> None:
    (source / FOLDER / "tollbook.json").write_text(owner)
    with pytest.raises(errors.InvalidArgument, match=r"tollbook\.json"):
        store.take(FOLDER)


def spoil(folder: Path, how: str) -> None:
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    match how:
        case "no weights":
            weights.unlink()
        case "no config":
            config.unlink()
        case "cut off":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "empty":
            weights.write_bytes(b"")
        case "another file":
            weights.write_bytes(b"\x80\x04pickle" * 100)
        case "narrow" | "wide" | "high":
            given = load_file(weights)
            name = next(name for name in sorted(given) if name.endswith("lora_A.weight"))
            value = given[name]
            shaped = {
                "narrow": value[:, :-1],
                "wide": np.hstack([value, value]),
                "high": np.resize(value, (65, value.shape[1])),
            }
            save_file(given | {name: np.ascontiguousarray(shaped[how])}, weights)
        case "no object":
            config.write_text("[]")
        case _:
            config.write_text(json.dumps({"r": json.loads(how)}))


@pytest.mark.parametrize(
    "how",
    [
        *("no weights", "no config", "cut off", "empty", "another file", "no object"),
        *("narrow", "wide", "high"),
        *("0", "-1", "65", '"8"', "null", "8.5", "true"),
    ],
)
def test_what_is_no_adapter_is_refused_and_leaves_nothing(
    store: AdapterStore, source: Path, tmp_path: Path, how: str
) -> None:
    spoil(source / FOLDER, how)
    with pytest.raises(errors.InvalidArgument, match="adapter_") as refused:
        store.take(FOLDER)
    # The line names the caller's file, not our copy.
    assert ".taking-" not in refused.value.message
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize("folder", ["..", "../adapters", "a/b", "", ".", "/etc", "a\0b"])
def test_a_folder_is_one_name(store: AdapterStore, folder: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="name of a folder"):
        store.take(folder)


def test_what_is_not_there_is_said(store: AdapterStore, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        store.take("nobody")
    with pytest.raises(errors.FailedPrecondition, match="TOLLBOOK_ADAPTERS"):
        AdapterStore("tiny", tmp_path / "model", None, tmp_path / "none", 64).take(FOLDER)
    with pytest.raises(ModelUnusable, match="not there"):
        AdapterStore("tiny", tmp_path / "model", tmp_path / "nowhere", tmp_path / "none", 64)
