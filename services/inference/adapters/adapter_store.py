"""LoRA adapters on the disk: taken from a folder of folders, kept by their content.

What the engine reads is a copy that nobody writes: its directory is named by the digest of
what is in it. An engine that evicted an adapter reads its files again in the midst of
serving, and dies if they are gone or others; here they are there until it is unloaded.

Formats: PEFT's adapter directory (adapter_config.json, adapter_model.safetensors); beside
them, where an adapter is one account's alone, `tollbook.json`: `{"account": "acme",
"project": "p"}`, the project optional.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from inference.adapters import models
from inference.app.adapters import Adapter
from kernel import errors

OWNER_FILE: Final = "tollbook.json"
CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
MAX_ADAPTER_BYTES: Final = 8 << 30
_FOLDER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OWNER: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class AdapterStore:
    """`source`: where adapters are put for us. `kept`: our copies, this process's alone.
    `model`: the base model's directory, which they must fit.
    """

    def __init__(
        self, base_name: str, model: Path, source: Path | None, kept: Path, max_rank: int
    ) -> None:
        """Errors: ModelUnusable, when the source is not there."""
        if source is not None and not source.is_dir():
            raise models.ModelUnusable(f"{source}, the directory of adapters, is not there")
        self._base_name = base_name
        self._source = source
        self._kept = kept
        self._max_rank = max_rank
        self._base_shapes = models.base_shapes(model) if source is not None else {}
        # A dead process's: what is loaded is copied again.
        shutil.rmtree(kept, ignore_errors=True)

    def folders(self) -> Sequence[str]:
        """See app.adapters.Library."""
        if self._source is None:
            return []
        names = (path.name for path in self._source.iterdir() if path.is_dir())
        return sorted(name for name in names if _FOLDER.fullmatch(name))

    def take(self, folder: str) -> Adapter:
        """See app.adapters.Library. What is read is the copy, which nobody changes."""
        if self._source is None:
            raise errors.FailedPrecondition(
                "there is no directory of adapters: set TOLLBOOK_ADAPTERS", reason="NO_ADAPTERS"
            )
        if not _FOLDER.fullmatch(folder):
            raise errors.InvalidArgument.of_field(
                "folder", "the name of a folder in the directory of adapters, without slashes"
            )
        source = self._source / folder
        if not source.is_dir():
            raise errors.NotFound(f"there is no folder {folder!r}", reason="NO_ADAPTER")
        self._kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=self._kept, prefix=".taking-"))
        try:
            return self._keep(folder, source, scratch)
        except (models.ModelUnusable, OSError) as error:
            problem = str(error).replace(str(scratch), str(source))
            raise errors.InvalidArgument(
                f"adapter {folder!r} cannot be served: {problem}", reason="BAD_ADAPTER"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _keep(self, folder: str, source: Path, scratch: Path) -> Adapter:
        """Errors: ModelUnusable, OSError."""
        for name in (CONFIG_FILE, WEIGHTS_FILE, OWNER_FILE):
            _copy(source / name, scratch / name, needed=name != OWNER_FILE)
        rank = models.rank_of(scratch, self._max_rank)
        models.check_weights(scratch / WEIGHTS_FILE, self._base_shapes, self._max_rank)
        account_id, project_id = _owner_of(scratch / OWNER_FILE)
        digest = models.digest_of(scratch.iterdir())
        target = self._kept / digest.hex()
        if not target.is_dir():
            os.rename(scratch, target)
        name = models.adapter_name(self._base_name, folder)
        return Adapter(name, target, rank, digest, account_id, project_id)

    def drop(self, adapter: Adapter) -> None:
        """See app.adapters.Library."""
        shutil.rmtree(adapter.path, ignore_errors=True)


def _copy(source: Path, target: Path, needed: bool) -> None:
    if not source.is_file():
        if needed:
            raise models.ModelUnusable(f"{source} is missing")
        return
    if source.stat().st_size > MAX_ADAPTER_BYTES:
        raise models.ModelUnusable(f"{source} is larger than {MAX_ADAPTER_BYTES} bytes")
    shutil.copyfile(source, target)
    # It may be one account's alone; the directory above is the owner's too.
    target.chmod(0o600)


def _owner_of(path: Path) -> tuple[str, str]:
    """(account, project) that an adapter is for alone. Errors: ModelUnusable."""
    if not path.is_file():
        return "", ""
    given = models.read_json(path)
    account, project = given.get("account"), given.get("project", "")
    if set(given) - {"account", "project"} or not all(
        isinstance(item, str) and _OWNER.fullmatch(item) for item in (account, project or "none")
    ):
        # Read wrongly it would be everybody's.
        raise models.ModelUnusable(
            f'{path}: write {{"account": "ID"}}, or {{"account": "ID", "project": "ID"}}'
        )
    return str(account), str(project)
