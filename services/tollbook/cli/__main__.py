"""`python -m tollbook.cli`, which is what the `tollbook` command runs."""

from __future__ import annotations

from tollbook.cli.root import main

if __name__ == "__main__":
    main()
