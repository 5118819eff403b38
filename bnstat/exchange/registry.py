"""The formats that `export` writes and `apply` reads, one row each.

The options and the help of `export`, the readers of `apply` and the tests of all formats are
derived from the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from bnstat.exchange.naming import ExportOptions
    from bnstat.exchange.values import Document
    from bnstat.model import BatchNorm, Model
    from bnstat.storage.files import File


class ExportModule(Protocol):
    """A module that writes and reads a format."""

    def dump(
        self,
        model: Model,
        file: Any,
        options: ExportOptions = ...,
        *,
        track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = ...,
    ) -> None:
        """Write a model to a file that need not be seekable.

        Args:
            model: the model; its arrays are read one after the other.
            file: binary, or text with `newline=""` in an encoding that has all of Unicode.
            options: what is written, and under which names.
            track: passes the layers on, for example to show progress.

        Raises:
            BnstatError: a variable cannot be read, or the format cannot store a layer.
        """

    def matches(self, file: File) -> bool:
        """Return True if a file is of this format, judged by its content."""
        ...

    def read(self, file: File) -> Document:
        """Read the values in a file.

        Raises:
            DamagedError: the file is damaged, or does not contain values of layers.
            UnsupportedError: it contains what `apply` cannot write, or is too large.
        """
        ...


class ExportFormat(NamedTuple):
    """A format of values.

    Attributes:
        name: the name of an `ExportModule` in this package, the value of `--format`, and the
            ending of files.
        title: the name in messages and help.
        content: what a file contains, for the help of `export`.
        is_binary: True if `dump` writes bytes, False if it writes text.
        flag: the help of the option `--NAME`; empty if `--format` alone chooses the format.
        is_model: True if `apply` reads such a file as any other model, so that the module has
            only `dump`.
    """

    name: str
    title: str
    content: str
    is_binary: bool
    flag: str = ""
    is_model: bool = False

    @property
    def module(self) -> ExportModule:
        """The module, which is imported now."""
        return cast(ExportModule, import_module(f"bnstat.exchange.{self.name}"))


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
