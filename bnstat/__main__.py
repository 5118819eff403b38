"""`python -m bnstat`, and the command `bnstat`."""

from __future__ import annotations

import gc
import sys

_SIGINT = 128 + 2
_RARELY = 100_000
"""Objects between two collections: a large checkpoint makes millions, and hardly any garbage."""


def run() -> None:
    """Run the command line. Ctrl-C ends it quietly, also while its modules are imported."""
    gc.set_threshold(_RARELY)
    try:
        from bnstat.cli import main

        main()
    except KeyboardInterrupt:
        sys.exit(_SIGINT)


if __name__ == "__main__":
    run()
