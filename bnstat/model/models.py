"""Models: the batch-norm layers of a file, and where they were read from."""

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
    """Where a model was read from.

    Attributes:
        path: the path as the user gave it.
        format: a name in `bnstat/formats/registry.py`, such as `saved-model` or `keras-h5`;
            `live` for a model in memory.
        checkpoint: name of the checkpoint in its folder (`model-1200`), if there are several.
        step: the training step by the checkpoint's name or its `global_step`.
        writer: the library and version that wrote the file; None if the file does not record it.
    """

    path: str
    format: str
    checkpoint: str | None = None
    step: int | None = None
    writer: str | None = None

    @property
    def is_converted(self) -> bool:
        """True if converters write files of this format, and training does not."""
        from bnstat.formats.registry import CONVERTED

        return self.format in CONVERTED


class Model(Displayed, Sequence[BatchNorm]):
    """The batch-norm layers of one file: a sequence, and a mapping by name.

    Attributes:
        source: where the layers were read from.
        layers: in the order of the network if the file records it, else by name.
        incomplete: layers that are surely batch norm, but whose moving statistics are not in the
            file, and the layers of `undecided`.
        notes: notes from reading, one line each.
        stored: key -> variable, for all tensors of the file.
        claimed: keys of the variables of batch norm, also of layers that `select` left out.
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
        """The incomplete layers that may be batch norm, whose variables have no certain roles."""
        return tuple(layer for layer in self.incomplete if layer.undecided and not layer.variables)

    def explain(self) -> Sequence[Explanation]:
        """Explain for every variable of the file why it was or was not taken as batch norm."""
        return self._explain()

    def preceding_biases(self) -> Mapping[str, PrecedingBias]:
        """Return the bias that the network adds right before each layer, by the layer's name.

        Layers without one are left out, and layers about which the file does not record enough.

        Raises:
            DamagedError: the part of the file that has to be read for this is damaged.
        """
        names = self.keys()
        return {name: bias for name, bias in self._find_biases().items() if name in names}

    def statistics_uses(self) -> Mapping[str, StatisticsUse]:
        """Return what the graphs show of the use of each layer's statistics, by the layer's name.

        Layers that no graph shows are left out.

        Raises:
            DamagedError: the part of the file that has to be read for this is damaged.
        """
        names = self.keys()
        return {name: use for name, use in self._find_uses().items() if name in names}

    def read(
        self,
        layers: Sequence[BatchNorm] | None = None,
        track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
    ) -> None:
        """Read the arrays of many layers now, and fetch their bytes together.

        Args:
            layers: the layers. Default: all, and the incomplete ones.
            track: passes the layers on, for example to show progress.

        Raises:
            DamagedError, NotFoundError: as `Variable.read`.
        """
        wanted = (*self.layers, *self.incomplete) if layers is None else layers
        fetch(variable for layer in wanted for variable in layer.all_variables())
        for layer in track(wanted):
            layer.read()

    def select(self, layers: Sequence[BatchNorm]) -> Model:
        """Return the model with only some of its layers."""
        model = copy(self)
        model.layers = tuple(layers)
        model._by_name = {layer.name: layer for layer in layers}
        return model

    @property
    def channels(self) -> int:
        """The number of channels of all layers together."""
        return sum(layer.channels for layer in self.layers)

    def keys(self) -> list[str]:
        """Return the layers' names."""
        return list(self._by_name)

    def values(self) -> list[BatchNorm]:
        """Return the layers."""
        return list(self.layers)

    def items(self) -> list[tuple[str, BatchNorm]]:
        """Return the layers with their names."""
        return list(self._by_name.items())

    def get(self, name: str, default: BatchNorm | None = None) -> BatchNorm | None:
        """Return the layer of this name, or `default`."""
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
            library: the library of the data frame. Default: the one that the program has imported,
                else the one that is installed, pandas first.

        Returns:
            A frame with the columns `layer`, `channel` (the index in the layer's flattened
            variables), `gamma`, `beta`, `moving_mean` and `moving_variance`. The numbers have the
            widest dtype of all layers (bfloat16 and smaller floats become float32). A missing role
            is null in Polars, NaN in pandas.

        Raises:
            UnsupportedError: the library is not installed.
            DamagedError, NotFoundError: as `Variable.read`.
        """
        return notebook("frame").frame(self, library)


def matches(name: str, globs: Sequence[str]) -> bool:
    """Return True if a name matches one of some globs, such as `block1/*`, or if globs is empty."""
    if not globs:
        return True
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, glob) for glob in globs)


def near_names(typed: str, names: Sequence[str]) -> str:
    """Return a hint with the names most similar to what was typed; empty without names."""
    from difflib import get_close_matches

    near = get_close_matches(typed, names, n=3, cutoff=0.4) or names[:3]
    return f"near names: {', '.join(near)}" if near else ""
