from __future__ import annotations

import sys

import pytest

if sys.platform != "linux":  # limits, namespaces and terminals are asked for in Linux's way
    collect_ignore_glob = ["test_*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seconds",
        type=float,
        help="how long each test of test_concurrency.py reads while a job saves (default: 5)",
    )
