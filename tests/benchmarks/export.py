"""Exports of 10,000,000 float32 values, beside `orjson.dumps` of the same arrays."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import Result, bnstat, build, compared, cpu, in_turn, peak, script

TITLE = "Export 10,000,000 values"

ORJSON = """
import sys
from pathlib import Path
import numpy, orjson
arrays = {path.stem: numpy.load(path) for path in sorted(Path(sys.argv[1]).glob("*.npy"))}
Path(sys.argv[2]).write_bytes(orjson.dumps(arrays, option=orjson.OPT_SERIALIZE_NUMPY))
"""
MEMORY = 120
LARGEST_ARRAY = 10
"""MB of one of the four arrays."""


def measure(data: Path, runs: int) -> Iterator[Result]:
    """Write from files to files: the peer reads `.npy` files, bnstat a checkpoint."""
    build(data, "values_10m")
    source = data / "values_10m"
    with tempfile.TemporaryDirectory() as folder:
        commands = {"peer": script(ORJSON, source, Path(folder) / "peer.json")}
        for ending in ("json", "csv"):
            commands[ending] = bnstat("export", source, "-o", Path(folder) / f"ours.{ending}")
        taken = in_turn(commands, min(runs, 5))
    for ending, bound in (("json", 2), ("csv", 4)):
        form, ours = ending.upper(), taken[ending]
        yield compared(f"{form}, CPU", "`orjson.dumps`", bound, cpu(ours), cpu(taken["peer"]))
        yield Result(f"{form}, peak memory", peak(ours), "MB", MEMORY + LARGEST_ARRAY)
