"""Models: the batch-norm layers of a file, and where they were read from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from bnstat.display import Displayed, notebook
from bnstat.formats.registry import CONVERTED
from bnstat.model.layers import BatchNorm
from bnstat.model.variables import Explanation, PrecedingBias, StatisticsUse, Variable, fetch


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model was read from.

    Attributes:
        path: the path as the user gave it.
        format: a name in `bnstat/formats/registry.py`, such as `saved-model` or `keras-h5`;
            `live` for a model in memory.
        checkpoint: name of the checkpoint in its folder (`model-1200`), where there are several.
        step: the training step that the checkpoint's name or its `global_step` tells.
        writer: the library and version that wrote the file, where it says so.
    """

    path: str
    format: str
    checkpoint: str | None = None
    step: int | None = None
    writer: str | None = None

    @property
    def is_converted(self) -> bool:
        """True if converters write files of this format, and training does not."""
        return self.format in CONVERTED


class Model(Displayed, Sequence[BatchNorm]):
    """The batch-norm layers of one file: a sequence, and a mapping by name.

    Attributes:
        source: where the layers were read from.
        layers: in the order of the network where the file tells it, else by name.
        incomplete: layers that are not among `layers`: those that are surely batch norm, but
            whose moving statistics are not in the file, and those of `undecided`.
        notes: what was noticed while reading, one line each.
        stored: all tensors of the file by key, whatever they belong to.
        claimed: keys of those that are batch norm's, of layers that `select` left out as well.
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
        claimed: frozenset[str] = frozenset(),
        find_biases: Callable[[], Mapping[str, PrecedingBias]] = dict,
        find_uses: Callable[[], Mapping[str, StatisticsUse]] = dict,
    ) -> None:
        self.source = source
        self.layers = tuple(layers)
        self.incomplete = tuple(incomplete)
        self.notes = tuple(notes)
        self.stored: Mapping[str, Variable] = {} if stored is None else stored
        keys = (each.key for layer in (*layers, *incomplete) for each in layer.all_variables())
        self.claimed = claimed.union(keys)
        self._explain = explain
        self._find_biases = find_biases
        self._find_uses = find_uses
        self._by_name = {layer.name: layer for layer in self.layers}

    @property
    def undecided(self) -> tuple[BatchNorm, ...]:
        """The incomplete layers that may be batch norm, whose variables' roles are not told."""
        return tuple(layer for layer in self.incomplete if layer.undecided and not layer.variables)

    def explain(self) -> Sequence[Explanation]:
        """For every variable of the file, why it was or was not taken as batch norm."""
        return self._explain()

    def preceding_biases(self) -> Mapping[str, PrecedingBias]:
        """Return the bias that the network adds right before each layer, by the layer's name.

        Layers without one are left out, as are those of which the file does not record enough.

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
        """Read the arrays of many layers now, their bytes fetched together.

        Args:
            layers: which ones; all, and the incomplete ones, if left out.
            track: passes the layers on, such as to show progress.

        Raises:
            DamagedError, NotFoundError: as `Variable.read`.
        """
        wanted = (*self.layers, *self.incomplete) if layers is None else layers
        fetch(variable for layer in wanted for variable in layer.all_variables())
        for layer in track(wanted):
            layer.read()

    def select(self, layers: Sequence[BatchNorm]) -> Model:
        """The same model, narrowed to some of its layers."""
        return Model(
            self.source,
            layers,
            incomplete=self.incomplete,
            notes=self.notes,
            explain=self._explain,
            stored=self.stored,
            claimed=self.claimed,
            find_biases=self._find_biases,
            find_uses=self._find_uses,
        )

    @property
    def channels(self) -> int:
        """The number of channels of all layers together."""
        return sum(layer.channels for layer in self.layers)

    def keys(self) -> list[str]:
        """The layers' names."""
        return list(self._by_name)

    def values(self) -> list[BatchNorm]:
        """The layers."""
        return list(self.layers)

    def items(self) -> list[tuple[str, BatchNorm]]:
        """The layers with their names."""
        return list(self._by_name.items())

    def get(self, name: str, default: BatchNorm | None = None) -> BatchNorm | None:
        """The layer of that name, or `default`."""
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
        """All numbers as a data frame of one row a channel.

        Args:
            library: whose data frame. Left out, that of the two which the program has imported,
                else which is installed, pandas first.

        Returns:
            A frame with the columns `layer`, `channel` (the index in the layer's flattened
            variables), `gamma`, `beta`, `moving_mean` and `moving_variance`. The numbers are of
            the widest dtype that a layer has (bfloat16 and smaller floats become float32); what
            a layer lacks is null in Polars, NaN in pandas.

        Raises:
            UnsupportedError: the library is not installed.
            DamagedError, NotFoundError: as `Variable.read`.
        """
        return notebook("frame").frame(self, library)


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether a name matches one of some globs, such as `block1/*`, or there are none."""
    if not globs:
        return True
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, glob) for glob in globs)


def near_names(typed: str, names: Sequence[str]) -> str:
    """A hint with the names that are the most like what was typed; empty where there are none."""
    from difflib import get_close_matches

    near = get_close_matches(typed, names, n=3, cutoff=0.4) or names[:3]
    return f"near names: {', '.join(near)}" if near else ""
