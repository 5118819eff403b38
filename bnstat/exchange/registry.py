"""The formats that `export` writes and `apply` reads, one row each.

The options and help of `export`, the help and readers of `apply`, the table in `docs/export.md`
and the tests of all formats are derived from the rows.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from importlib import import_module
from os import PathLike, fspath
from typing import Any, Final, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike

from bnstat.errors import BnstatError, UnknownFormatError, UnsupportedError
from bnstat.exchange.naming import NAMINGS, PARTS_FOLDED, ExportOptions, Naming
from bnstat.exchange.values import Document, Given, refused_folded
from bnstat.loading import load
from bnstat.model import ROLES, BatchNorm, Model, Variable
from bnstat.storage.files import File
from bnstat.storage.local import LocalFile, kind_of


class ExportModule(Protocol):
    """A module that writes and reads a format."""

    def dump(self, model: Model, file: Any, options: ExportOptions = ...) -> None:
        """Write a model to a file that need not be seekable.

        Args:
            model: the model; the arrays are read one after the other.
            file: binary, or text with `newline=""` in an encoding of all Unicode characters.
            options: the parts to write, and their names.

        Raises:
            BnstatError: a variable cannot be read, or the format cannot store a layer.
        """

    def matches(self, file: File) -> bool:
        """Return True if a file's content is in this format.

        A model must not match, because export formats are tried before the formats of models.
        """

    def read(self, file: File) -> Document:
        """Read the values in a file.

        Raises:
            DamagedError: the file is damaged, or does not contain values of layers.
            UnsupportedError: the file contains values that `apply` cannot write, or is too large.
        """


class ExportFormat(NamedTuple):
    """A format of values.

    Attributes:
        name: the name of the module in this package, the value of `--format`, and the ending of
            file names (without the dot) that selects the format.
        title: the name in messages and help.
        content: what a file contains, for the help of `export` and the documentation.
        is_binary: True if `dump` writes bytes, False if it writes text.
        flag: the help of the option `--NAME`; empty if only `--format` selects the format.
        is_document: True if a file contains everything that `schema.json` describes; such a file
            is useful without values too.
        is_model: True if `apply` reads the file like any model, so that the module has only `dump`.
    """

    name: str
    title: str
    content: str
    is_binary: bool
    flag: str = ""
    is_document: bool = False
    is_model: bool = False

    @property
    def is_rounded(self) -> bool:
        """True if `apply` rounds numbers to the stored type; False if they must fit exactly."""
        return self.is_document or not self.is_binary

    @property
    def module(self) -> ExportModule:
        """The module, imported on access."""
        return cast(ExportModule, import_module(f"bnstat.exchange.{self.name}"))


FORMATS: Final = (
    ExportFormat(
        name="json",
        title="JSON",
        content="""\
one object; its schema is schema.json in bnstat/exchange.
Numbers read back to the stored bits; NaN and infinities are strings.""",
        is_binary=False,
        flag="Write JSON, losslessly. The default.",
        is_document=True,
    ),
    ExportFormat(
        name="csv",
        title="CSV",
        content="""\
one row per channel: layer, channel, gamma, beta, moving_mean,
moving_variance. If variables have several dimensions, a channel is
one index per dimension, such as 0:3:1. A layer name that a
spreadsheet would run as a formula gets a ' before it.""",
        is_binary=False,
        flag="Write CSV: one row per channel.",
    ),
    ExportFormat(
        name="npz",
        title="NPZ",
        content="keys LAYER/ROLE, for numpy.load. bfloat16 becomes float32, exactly.",
        is_binary=True,
        flag="Write NPZ, NumPy's archive of arrays.",
    ),
    ExportFormat(
        name="safetensors",
        title="safetensors",
        content="the same keys, with every type as it is stored.",
        is_binary=True,
        is_model=True,
    ),
    ExportFormat(
        name="parquet",
        title="Parquet",
        content="the table of CSV; needs pyarrow (pip install pyarrow).",
        is_binary=True,
    ),
)
"""The formats, in the order of the help; the first one is the default."""

Values = Mapping[str, Mapping[str, ArrayLike | None]]
"""A layer's name -> role -> array; None leaves the role unchanged."""

_LARGEST: Final = 1 << 30


def values_of(values: Values | Model | str | PathLike[str]) -> Document | Model:
    """Return the values that a caller of `apply` passes: a mapping, a model, or a path to read."""
    if isinstance(values, Model):
        return values
    if not isinstance(values, Mapping):
        return read_values(fspath(values))
    layers = {
        name: {role: Given(np.asarray(array)) for role, array in roles.items() if array is not None}
        for name, roles in values.items()
    }
    return Document("values", layers)


def read_values(path: str) -> Document | Model:
    """Read the values at a path: a file that `export` wrote, or any model."""
    if kind_of(path) == stat.S_IFREG:
        file = LocalFile(path)
        # Any text in braces may be JSON, which therefore comes last.
        for row in (*FORMATS[1:], FORMATS[0]):
            if not row.is_model and row.module.matches(file):
                if file.size > _LARGEST:
                    what = f"is larger than 1 GiB, the largest {row.title} that bnstat reads"
                    raise UnsupportedError(path, what)
                return row.module.read(file)
    try:
        model = as_exported(load(path))
    except UnknownFormatError as error:
        hint = "pass a file that bnstat export wrote, or a model"
        raise UnknownFormatError(path, "contains no values", hint) from error
    if not model.layers:
        raise BnstatError(path, "contains no batch-norm layer to take values from")
    return model


def as_exported(model: Model) -> Model:
    """Return the model of an exported file, with the layers that the tensors' names describe.

    Names alone do not prove batch norm, for example Flax's `batch_stats/x/mean` without a scale.
    However, a file is an export if every tensor has a name that `export` writes, and every layer
    has both moving statistics. Other models are returned unchanged.
    """
    for naming in NAMINGS.values():
        layers = _layers(naming, model.stored)
        if not layers:
            continue
        parts = {part for variables in layers.values() for part in variables}
        if parts == {*PARTS_FOLDED} and not model.layers:
            raise refused_folded(model.source.path)
        if parts <= {*ROLES} and all(
            {"moving_mean", "moving_variance"} <= variables.keys() for variables in layers.values()
        ):
            norms = [BatchNorm(name, variables) for name, variables in layers.items()]
            return Model(model.source, norms, stored=model.stored)
    return model


def _layers(naming: Naming, tensors: Mapping[str, Variable]) -> dict[str, dict[str, Variable]]:
    layers: dict[str, dict[str, Variable]] = {}
    for key, (name, part) in naming.parse_all(tensors).items():
        layers.setdefault(name, {})[part] = tensors[key]
    return layers
