"""Text that may stand in tables, digests and answers without surprise."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

# Halves of surrogate pairs with them: YAML and JSON can spell one, and no encoding has it.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TO_ESCAPE: Final = re.compile("[\x00-\x1f\x7f-\x9f\\\\]")


def is_plain(text: str) -> bool:
    """Tell whether a text has no control character, no tab, newline or NUL, and can be encoded."""
    return _CONTROL.search(text) is None


def _code(found: re.Match[str]) -> str:
    point = ord(found[0])
    return f"\\x{point:02x}" if point < 256 else f"\\u{point:04x}"


def printable(text: str) -> str:
    r"""Write a stranger's text as a terminal may have it: `\x1b` for an escape.

    JSON can spell half of a surrogate pair, which no encoding has: it is printed as `\ud800`.
    """
    return _CONTROL.sub(_code, text)


def escaped(text: str) -> str:
    r"""Write a text without control characters, reversibly: a tab is `\x09`, a backslash `\x5c`."""
    return _TO_ESCAPE.sub(_code, text)


def needs_escape(text: str) -> bool:
    """Tell whether `escaped` would change a text."""
    return _TO_ESCAPE.search(text) is not None


def digest_of_parts(parts: Iterable[object]) -> bytes:
    """Digest (16 bytes) that a row is found again by; lengths keep ("a", "bc") and ("ab", "c")
    apart.
    """
    text = "".join([f"{len(part)}:{part}" for part in map(str, parts)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
