"""`python -m audit EXPORT --key FILE [--policy FILE] [--json]`: the auditor by itself.

Exit 0 when everything agrees, 1 when something differs, 2 when the input
cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from audit.auditor import audit
from audit.findings import UnusableError

EXIT_AGREES: Final = 0
EXIT_DIFFERS: Final = 1
EXIT_UNUSABLE: Final = 2


def run(export: Path, key_file: Path, as_json: bool, policy_file: Path | None = None) -> int:
    """Audit and tell; gives the exit status."""
    try:
        report = audit(export, key_file, policy_file)
    except UnusableError as error:
        if as_json:
            sys.stdout.write(json.dumps({"ok": False, "unusable": str(error)}) + "\n")
        sys.stderr.write(f"audit: {error}\n")
        return EXIT_UNUSABLE
    if as_json:
        sys.stdout.write(json.dumps(report.as_json(), indent=1) + "\n")
    else:
        sys.stdout.write(report.as_text())
    if report.first is not None and as_json:
        sys.stderr.write(f"audit: {report.first}\n")
    return EXIT_AGREES if report.ok else EXIT_DIFFERS


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and audit."""
    parser = argparse.ArgumentParser(prog="audit", description="Audit an export of all logs.")
    parser.add_argument("export", type=Path, metavar="EXPORT", help="the export's directory")
    parser.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="verifier keys, one a line"
    )
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="who must have cosigned (C2SP tlog-policy)"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args(arguments)
    return run(given.export, given.key, given.json, given.policy)


if __name__ == "__main__":
    sys.exit(main())
