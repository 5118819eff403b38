"""The formats that `export` writes and `apply` reads, one row each.

The options and the help of `export`, the readers of `apply` and the tests of all formats are
derived from the rows.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, NamedTuple


class ExportFormat(NamedTuple):
    """A format of values; a module `bnstat.exchange.NAME` writes and reads it.

    The module has `dump(model, file, options, *, track)` and, unless `is_model`, also
    `matches(file)`, which identifies a file by its content, and `read(file)`.

    Attributes:
        name: the name of the module, the value of `--format`, and the ending of files.
        title: the name in messages and help.
        content: what a file contains, for the help of `export`.
        is_binary: True if `dump` writes bytes, False if it writes text.
        flag: the help of the option `--NAME`; empty if `--format` alone chooses the format.
        is_model: True if `apply` reads such a file as any other model.
    """

    name: str
    title: str
    content: str
    is_binary: bool
    flag: str = ""
    is_model: bool = False

    @property
    def module(self) -> Any:
        """The module, which is imported now."""
        return import_module(f"bnstat.exchange.{self.name}")


FORMATS: Final = (
    ExportFormat(
        "json",
        "JSON",
        """\
one object; its schema is schema.json in bnstat/exchange.
Numbers read back to the stored bits; NaN and infinities are strings.""",
        is_binary=False,
        flag="Write JSON, losslessly. The default.",
    ),
    ExportFormat(
        "csv",
        "CSV",
        """\
one row per channel: layer, channel, gamma, beta, moving_mean,
moving_variance. If variables have several dimensions, a channel is
one index per dimension, such as 0:3:1. A layer name that a
spreadsheet would run as a formula gets a ' before it.""",
        is_binary=False,
        flag="Write CSV: one row per channel.",
    ),
    ExportFormat(
        "npz",
        "NPZ",
        "keys LAYER/ROLE, for numpy.load. bfloat16 becomes float32, exactly.",
        is_binary=True,
        flag="Write NPZ, NumPy's archive of arrays.",
    ),
    ExportFormat(
        "safetensors",
        "safetensors",
        "the same keys, with every type as it is stored.",
        is_binary=True,
        is_model=True,
    ),
    ExportFormat(
        "parquet",
        "Parquet",
        "the table of CSV; needs pyarrow (pip install pyarrow).",
        is_binary=True,
    ),
)
"""The formats, in the order of the help; the first one is the default."""
