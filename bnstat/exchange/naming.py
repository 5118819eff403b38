"""The parts of a layer that `export` writes, and their names in each framework.

Momentum is the share of the new statistics in PyTorch, and of the old statistics elsewhere.
Sources: torch/nn/modules/batchnorm.py; docs/Operators.md of ONNX; flax/linen/normalization.py.

`diff --map` writes a CSV file of lines OLD,NEW with the names of paired layers; `export --map`
reads it. If tensors are not named after their layer, as in ONNX files, each tensor also has a line:
`LAYER/gamma,TENSOR`. Characters that are not printable are written as escapes.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.model import ROLES, Array, BatchNorm, Model, printable

if TYPE_CHECKING:
    from bnstat.compare.diff import Difference

PARTS_FOLDED: Final = ("scale", "shift")
"""The parts of a folded layer: `y = scale * x + shift`."""


class Naming(NamedTuple):
    """The names that a framework uses for the parts of a layer.

    Attributes:
        separator: separates the components of a layer's name; None to leave names unchanged.
        keys: part -> name of the tensor, with `{}` in place of the layer's name.
        has_new_share: True if momentum is the share of the new statistics, False if of the old.
    """

    separator: str | None
    keys: Mapping[str, str]
    has_new_share: bool = False

    def spell(self, name: str) -> str:
        if self.separator is None:
            return name
        return name.replace("." if self.separator == "/" else "/", self.separator)

    def parse(self, key: str) -> tuple[str, str] | None:
        """Split a tensor's name into the layer's name and the part; None for other names."""
        for part, template in self.keys.items():
            before, _, after = template.partition("{}")
            name = key[len(before) : len(key) - len(after)]
            if name and key == f"{before}{name}{after}":
                return name, part
        return None

    def parse_all(self, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Return key -> (layer's name, part); an empty dict if a key has another naming."""
        parsed = {}
        for key in keys:
            if (parts := self.parse(key)) is None:
                return {}
            parsed[key] = parts
        return parsed

    def label(self, part: str) -> str:
        """Return the name of a part without the layer's name, such as `running_mean`."""
        return self.keys[part].rpartition("{}")[2][1:]


def _suffixes(separator: str, labels: Sequence[str]) -> dict[str, str]:
    parts = (*zip(ROLES, labels, strict=True), *((part, part) for part in PARTS_FOLDED))
    return {part: f"{{}}{separator}{label}" for part, label in parts}


NAMINGS: Final[Mapping[str, Naming]] = {
    "keras": Naming(None, _suffixes("/", ROLES)),
    "pytorch": Naming(
        ".", _suffixes(".", ("weight", "bias", "running_mean", "running_var")), has_new_share=True
    ),
    "onnx": Naming(".", _suffixes(".", ("scale", "B", "input_mean", "input_var"))),
    "flax": Naming(
        "/",
        {
            "gamma": "params/{}/scale",
            "beta": "params/{}/bias",
            "moving_mean": "batch_stats/{}/mean",
            "moving_variance": "batch_stats/{}/var",
            **{part: f"{{}}/{part}" for part in PARTS_FOLDED},
        },
    ),
}


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export`: the parts to write, and their names.

    Attributes:
        names: a key of `NAMINGS`, recorded in JSON; None for Keras's names, which are not recorded.
        folded: True to write each layer's scale and shift instead of the four roles.
        epsilon: used for scale and shift if a layer's file does not store an epsilon.
        renamed: name of a layer, or `LAYER/ROLE` for a tensor -> new name.
        values: False to write no values; allowed only for formats with `is_document`.
        track: wraps the iteration over layers, for example to show progress.
    """

    names: str | None = None
    folded: bool = False
    epsilon: float | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    values: bool = True
    track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter

    @property
    def naming(self) -> Naming:
        return NAMINGS[self.names or "keras"]

    @property
    def parts(self) -> Sequence[str]:
        """The parts to write of each layer: the roles, or scale and shift."""
        return PARTS_FOLDED if self.folded else ROLES

    @property
    def labels(self) -> list[str]:
        return [self.naming.label(part) for part in self.parts]

    def name(self, layer: BatchNorm) -> str:
        return self.renamed.get(layer.name, self.naming.spell(layer.name))

    def key(self, layer: BatchNorm, part: str) -> str:
        key = self.naming.keys[part].replace("{}", self.name(layer))
        return self.renamed.get(f"{layer.name}/{part}", key)

    def momentum(self, layer: BatchNorm) -> float | None:
        """Return a layer's momentum as the framework defines it."""
        if layer.momentum is None or not self.naming.has_new_share:
            return layer.momentum
        return float(f"{1 - layer.momentum:.12g}")

    def array(self, layer: BatchNorm, part: str) -> Array | None:
        """Return a role of a layer or, if folded, its scale or shift; None for a missing part."""
        if not self.folded:
            return layer.array(part)
        return layer.scale_and_shift(self.epsilon_of(layer))[PARTS_FOLDED.index(part)]

    def arrays(self, layers: Sequence[BatchNorm]) -> Iterator[tuple[str, Array]]:
        """Yield the key and the array of each part that a layer has."""
        for layer in self.track(layers):
            for part in self.parts:
                array = self.array(layer, part)
                if array is not None:
                    yield self.key(layer, part), array

    def epsilon_of(self, layer: BatchNorm) -> float:
        epsilon = self.epsilon if layer.epsilon is None else layer.epsilon
        if epsilon is None:
            raise BnstatError(printable(layer.name), "the file stores no epsilon", "pass --epsilon")
        return epsilon

    def check(self, layers: Sequence[BatchNorm]) -> None:
        """Raise a `BnstatError` if two tensors would share a name, or an epsilon is missing."""
        names: dict[str, str] = {}
        hint = "rename one with --map"
        for layer in layers:
            name = self.name(layer)
            earlier = names.setdefault(name, layer.name)
            if earlier != layer.name:
                both = f"{printable(earlier)} and {printable(layer.name)}"
                raise BnstatError(printable(name), f"is the name of two layers, {both}", hint)
            if self.folded:
                self.epsilon_of(layer)
        keys = Counter(self.key(layer, part) for layer in layers for part in self.parts)
        for key, count in keys.items():
            if count > 1:
                raise BnstatError(printable(key), "is the name of two tensors", hint)


DEFAULTS: Final = ExportOptions()
"""The values of all four roles, under bnstat's own names."""

_LARGEST_MAP: Final = 1 << 26


def write_name_map(difference: Difference, new: Model, file: IO[str]) -> None:
    """Write a line OLD,NEW for each old layer; a layer without a counterpart keeps its name."""
    writer = csv.writer(file, lineterminator="\n")
    for pair in difference.layers:
        writer.writerow((printable(pair.old), printable(pair.new)))
        variables = new[pair.new].variables if new.source.format == "onnx" else {}
        for role in (role for role in ROLES if role in variables):
            writer.writerow((printable(f"{pair.old}/{role}"), printable(variables[role].key)))
    for name in difference.removed:
        writer.writerow((printable(name), printable(name)))


def read_name_map(path: str, layers: Sequence[BatchNorm]) -> Mapping[str, str]:
    """Return old name -> new name, for layers and tensors; see `ExportOptions.renamed`."""
    with open(path, "rb") as file:
        data = file.read(_LARGEST_MAP + 1)
    if len(data) > _LARGEST_MAP:
        raise DamagedError(path, "is too large for a list of names")
    try:
        text = data.decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DamagedError(path, f"is not valid CSV ({error})") from error
    names = [f"{layer.name}/{role}" for layer in layers for role in ROLES]
    names += [layer.name for layer in layers]
    by_text = {printable(name): name for name in names}
    renamed: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}, line {number}"
        if not row:
            continue
        if len(row) != 2 or not row[1].strip():
            hint = "bnstat diff OLD NEW --map writes such lines"
            raise DamagedError(where, "must be two layer names", hint)
        old, new = row[0].strip(), row[1].strip()
        if old not in by_text:
            raise NotFoundError(where, f"no layer is called {printable(old[:200])!r}")
        if by_text[old] in renamed:
            raise DamagedError(where, f"{printable(old[:200])!r} is listed a second time")
        renamed[by_text[old]] = new
    return renamed
