from __future__ import annotations

import sys

if sys.platform != "linux":  # the worker's limits are set in Linux's way
    collect_ignore_glob = ["test_*.py"]
