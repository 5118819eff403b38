"""Models: the batch-norm layers of a file, and the source of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, overload

from bnstat.display import Displayed, notebook
from bnstat.model.layers import BatchNorm
from bnstat.model.variables import Explanation, PrecedingBias, StatisticsUse, Variable, fetch


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a model.

    Attributes:
        path: the path that the user passed.
        format: a name in `bnstat/formats/registry.py`, such as `saved-model` or `keras-h5`;
            `live` for a model in memory.
        checkpoint: name of the checkpoint in its folder (`model-1200`), if there are several.
        step: the training step, from the checkpoint's name or its `global_step`.
        writer: the library and version that wrote the file; None if the file does not record it.
    """

    path: str
    format: str
    checkpoint: str | None = None
    step: int | None = None
    writer: str | None = None

    @property
    def is_converted(self) -> bool:
        """True if files of this format are written by converters, not by training."""
        from bnstat.formats.registry import CONVERTED

        return self.format in CONVERTED


class Model(Displayed, Sequence[BatchNorm]):
    """The batch-norm layers of one file: a sequence, and a mapping by name.

    Attributes:
        source: the file or object that was read.
        layers: the layers, in network order if the file records the order, else by name.
        incomplete: certain batch-norm layers whose moving statistics are not in the file, and
            layers that may be batch norm.
        notes: remarks on the file, one line each.
        stored: key -> variable, for all tensors of the file.
        claimed: keys of the variables of all batch-norm layers, even those that `select` left out.
    """

    def __init__(
        self,
        source: Source,
        layers: Sequence[BatchNorm],
        *,
        incomplete: Sequence[BatchNorm] = (),
        notes: Sequence[str] = (),
        explain: Callable[[], Sequence[Explanation]] = tuple,
        stored: Mapping[str, Variable] | None = None,
        find_biases: Callable[[], Mapping[str, PrecedingBias]] = dict,
        find_uses: Callable[[], Mapping[str, StatisticsUse]] = dict,
    ) -> None:
        self.source = source
        self.layers = tuple(layers)
        self.incomplete = tuple(incomplete)
        self.notes = tuple(notes)
        self.stored: Mapping[str, Variable] = {} if stored is None else stored
        self.claimed = frozenset(
            variable.key for layer in (*layers, *incomplete) for variable in layer.all_variables()
        )
        self._explain = explain
        self._find_biases = find_biases
        self._find_uses = find_uses
        self._by_name = {layer.name: layer for layer in self.layers}

    @property
    def undecided(self) -> tuple[BatchNorm, ...]:
        """The incomplete layers that may be batch norm, and whose variables have unknown roles."""
        return tuple(layer for layer in self.incomplete if layer.undecided and not layer.variables)

    def explain(self) -> Sequence[Explanation]:
        """Explain, for each variable of the file, why it belongs to a batch norm or does not."""
        return self._explain()

    def preceding_biases(self) -> Mapping[str, PrecedingBias]:
        """Return layer name -> bias that the network adds right before the layer.

        Layers without a bias, or with insufficient information in the file, are left out.

        Raises:
            DamagedError: a required part of the file is damaged.
        """
        names = self.keys()
        return {name: bias for name, bias in self._find_biases().items() if name in names}

    def statistics_uses(self) -> Mapping[str, StatisticsUse]:
        """Return layer name -> use of the moving statistics in the file's graphs.

        Layers that are in no graph are left out.

        Raises:
            DamagedError: a required part of the file is damaged.
        """
        names = self.keys()
        return {name: use for name, use in self._find_uses().items() if name in names}

    def read(
        self,
        layers: Sequence[BatchNorm] | None = None,
        track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
    ) -> None:
        """Read the arrays of many layers now, fetching their bytes together.

        Args:
            layers: the layers. Default: all layers, including incomplete layers.
            track: wraps the iteration over layers, for example to show progress.

        Raises:
            DamagedError, NotFoundError: as `Variable.read`.
        """
        wanted = (*self.layers, *self.incomplete) if layers is None else layers
        fetch(variable for layer in wanted for variable in layer.all_variables())
        for layer in track(wanted):
            layer.read()

    def select(self, layers: Sequence[BatchNorm]) -> Model:
        """Return a copy of the model with only some layers."""
        model = copy(self)
        model.layers = tuple(layers)
        model._by_name = {layer.name: layer for layer in layers}
        return model

    @property
    def channels(self) -> int:
        """The total number of channels."""
        return sum(layer.channels for layer in self.layers)

    def keys(self) -> list[str]:
        """Return the layers' names."""
        return list(self._by_name)

    def values(self) -> list[BatchNorm]:
        """Return the layers."""
        return list(self.layers)

    def items(self) -> list[tuple[str, BatchNorm]]:
        """Return pairs of name and layer."""
        return list(self._by_name.items())

    def get(self, name: str, default: BatchNorm | None = None) -> BatchNorm | None:
        """Return the layer with this name, or `default`."""
        return self._by_name.get(name, default)

    @overload
    def __getitem__(self, index: int | str) -> BatchNorm: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[BatchNorm, ...]: ...

    def __getitem__(self, index: int | str | slice) -> BatchNorm | tuple[BatchNorm, ...]:
        if isinstance(index, str):
            return self._by_name[index]
        return self.layers[index]

    def __iter__(self) -> Iterator[BatchNorm]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, item: object) -> bool:
        return item in self._by_name if isinstance(item, str) else item in self.layers

    def __repr__(self) -> str:
        count = len(self.layers)
        layers = "1 batch-norm layer" if count == 1 else f"{count} batch-norm layers"
        return f"<Model {self.source.path!r} ({self.source.format}): {layers}>"

    def to_frame(self, library: Literal["pandas", "polars"] | None = None) -> Any:
        """Return all numbers as a data frame with one row for each channel.

        Args:
            library: the library of the data frame. Default: the library that the program has
                imported, else an installed one, pandas first.

        Returns:
            A frame with the columns `layer`, `channel` (the index in the layer's flattened
            variables), `gamma`, `beta`, `moving_mean` and `moving_variance`. The numbers have the
            widest dtype of all layers (bfloat16 and smaller floats become float32). A missing role
            is null in Polars, NaN in pandas.

        Raises:
            UnsupportedError: the library is not installed.
            DamagedError, NotFoundError: as `Variable.read`.
        """
        return notebook().frame(self, library)


def matches(name: str, globs: Sequence[str]) -> bool:
    """Return True if a name matches a glob, such as `block1/*`, or if `globs` is empty."""
    if not globs:
        return True
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, glob) for glob in globs)


def near_names(typed: str, names: Sequence[str]) -> str:
    """Return a hint with the names most similar to the input; empty without names."""
    from difflib import get_close_matches

    near = get_close_matches(typed, names, n=3, cutoff=0.4) or names[:3]
    return f"near names: {', '.join(near)}" if near else ""
