"""`python -m bnstat`."""

from __future__ import annotations

from bnstat.cli import main

if __name__ == "__main__":
    main()
