"""What an export has for each layer, and what it is called: in Keras's words or another's.

Gamma and beta are `weight` and `bias` of PyTorch's `BatchNorm2d`, `scale` and `B` of ONNX's
`BatchNormalization`, `scale` and `bias` of Flax's `BatchNorm`. The momentum is the share that is
kept, but in PyTorch, where it is the share that is taken.

Sources: torch/nn/modules/batchnorm.py; docs/Operators.md of ONNX; flax/linen/normalization.py.

Other names for layers: a line `from,to` for each, as CSV.

`diff --map` writes such lines, `export --map` reads them. Names are written as everywhere: a
character that is not printable is an escape. Where a layer's tensors have names that do not
come of its own, as in an ONNX file, each has a line: `LAYER/gamma,TENSOR`.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Final, NamedTuple

from bnstat.compare import Difference
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.model import ROLES, Array, BatchNorm, Model, printable

PARTS_FOLDED: Final = ("scale", "shift")
"""What a layer amounts to: `y = scale * x + shift`."""


class Naming(NamedTuple):
    """How a framework names what a layer has.

    Attributes:
        separator: what stands between the parts of a layer's name; None where it stays as it is.
        keys: part -> the name of its tensor, from the layer's for `{}`.
        is_taken: whether momentum is the share that is taken, not the one that is kept.
    """

    separator: str | None
    keys: Mapping[str, str]
    is_taken: bool = False

    def spelt(self, name: str) -> str:
        """What a layer is called that has this name in Keras's words."""
        if self.separator is None:
            return name
        return name.replace("." if self.separator == "/" else "/", self.separator)

    def parsed(self, key: str) -> tuple[str, str] | None:
        """Return the layer's name and the part that the tensor `key` holds, or None."""
        for part, template in self.keys.items():
            before, _, after = template.partition("{}")
            name = key[len(before) : len(key) - len(after)]
            if name and key == f"{before}{name}{after}":
                return name, part
        return None

    def label(self, part: str) -> str:
        """What a part is called, without the layer's name: `running_mean`."""
        return self.keys[part].rpartition("{}")[2][1:]


_FOLDED_BY_SLASH: Final = {"scale": "{}/scale", "shift": "{}/shift"}
_FOLDED_BY_DOT: Final = {"scale": "{}.scale", "shift": "{}.shift"}

NAMINGS: Final[Mapping[str, Naming]] = {
    "keras": Naming(None, {role: f"{{}}/{role}" for role in ROLES} | _FOLDED_BY_SLASH),
    "pytorch": Naming(
        ".",
        {
            "gamma": "{}.weight",
            "beta": "{}.bias",
            "moving_mean": "{}.running_mean",
            "moving_variance": "{}.running_var",
            **_FOLDED_BY_DOT,
        },
        is_taken=True,
    ),
    "onnx": Naming(
        ".",
        {
            "gamma": "{}.scale",
            "beta": "{}.B",
            "moving_mean": "{}.input_mean",
            "moving_variance": "{}.input_var",
            **_FOLDED_BY_DOT,
        },
    ),
    "flax": Naming(
        "/",
        {
            "gamma": "params/{}/scale",
            "beta": "params/{}/bias",
            "moving_mean": "batch_stats/{}/mean",
            "moving_variance": "batch_stats/{}/var",
            **_FOLDED_BY_SLASH,
        },
    ),
}


@dataclass(frozen=True)
class Form:
    """What is written of a model's layers.

    Attributes:
        names: one of `NAMINGS`; None where nobody asked for one, which is as `keras`.
        folded: scale and shift instead of the four roles.
        epsilon: of layers whose file does not tell it, where `folded`.
        renamed: a layer's name -> the one to write for it, as it is; the same of a tensor, by the
            layer's name and the role.
    """

    names: str | None = None
    folded: bool = False
    epsilon: float | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def naming(self) -> Naming:
        """How all is called."""
        return NAMINGS[self.names or "keras"]

    @property
    def parts(self) -> Sequence[str]:
        """What is written of each layer: the roles, or scale and shift."""
        return PARTS_FOLDED if self.folded else ROLES

    @property
    def labels(self) -> list[str]:
        """What the parts are called, without a layer's name."""
        return [self.naming.label(part) for part in self.parts]

    def name(self, layer: BatchNorm) -> str:
        """What a layer is called."""
        if layer.name in self.renamed:
            return self.renamed[layer.name]
        return self.naming.spelt(layer.name)

    def key(self, layer: BatchNorm, part: str) -> str:
        """What the tensor of a part of a layer is called."""
        renamed = self.renamed.get(f"{layer.name}/{part}")
        return (
            self.naming.keys[part].replace("{}", self.name(layer)) if renamed is None else renamed
        )

    def momentum(self, layer: BatchNorm) -> float | None:
        """A layer's momentum, as the other side means it."""
        if layer.momentum is None or not self.naming.is_taken:
            return layer.momentum
        return float(f"{1 - layer.momentum:.12g}")

    def array(self, layer: BatchNorm, part: str) -> Array | None:
        """A part of a layer; None where it lacks the role.

        Raises:
            BnstatError: it cannot be read, or its epsilon is not known.
        """
        if not self.folded:
            return layer.array(part)
        return layer.scale_and_shift(self.epsilon_of(layer))[PARTS_FOLDED.index(part)]

    def epsilon_of(self, layer: BatchNorm) -> float:
        """The epsilon in a layer's scale.

        Raises:
            BnstatError: it is not known.
        """
        epsilon = self.epsilon if layer.epsilon is None else layer.epsilon
        if epsilon is None:
            raise BnstatError(
                printable(layer.name), "the file does not tell its epsilon", "give --epsilon"
            )
        return epsilon

    def check(self, layers: Sequence[BatchNorm]) -> None:
        """See to it, before anything is written, that these layers can be written so.

        Raises:
            BnstatError: two would be called alike, or an epsilon that is needed is not known.
        """
        names: dict[str, str] = {}
        for layer in layers:
            earlier = names.setdefault(self.name(layer), layer.name)
            if earlier != layer.name:
                raise BnstatError(
                    printable(self.name(layer)),
                    f"is the name of two layers, {printable(earlier)} and {printable(layer.name)}",
                    "rename one with --map",
                )
            if self.folded:
                self.epsilon_of(layer)
        keys = Counter(self.key(each, part) for each in layers for part in self.parts)
        for key, times in keys.items():
            if times > 1:
                raise BnstatError(
                    printable(key), "is the name of two tensors", "rename one with --map"
                )


PLAIN: Final = Form()
"""All four roles, as bnstat calls them."""

_LARGEST: Final = 1 << 26


def dump(difference: Difference, new: Model, file: IO[str]) -> None:
    """Write the names of the old model's layers, each with that of its pair in the new one.

    Layers of the old model that have no pair keep their names. Of an ONNX file, whose nodes take
    tensors of any name, those of the tensors are written as well.

    Args:
        difference: what was compared.
        new: the new model of the two.
        file: where to write.
    """
    writer = csv.writer(file, lineterminator="\n")
    for layer in difference.layers:
        writer.writerow((printable(layer.old), printable(layer.new)))
        variables = new[layer.new].variables if new.source.format == "onnx" else {}
        for role in (role for role in ROLES if role in variables):
            writer.writerow((printable(f"{layer.old}/{role}"), printable(variables[role].key)))
    for name in difference.removed:
        writer.writerow((printable(name), printable(name)))


def read(path: str, layers: Sequence[BatchNorm]) -> Mapping[str, str]:
    """The new names of some layers and tensors from a file, by their old ones.

    Raises:
        DamagedError: the file is no such CSV, or names a layer twice.
        NotFoundError: it names a layer that is not there.
        OSError: there is no such file, or it cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise DamagedError(path, "is too large for a list of names")
    try:
        text = data.decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DamagedError(path, f"is no CSV ({error})") from error
    olds = [f"{layer.name}/{role}" for layer in layers for role in ROLES]
    olds += [layer.name for layer in layers]
    spelt = {printable(old): old for old in olds}
    renamed: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}, line {number}"
        if not row:
            continue
        if len(row) != 2 or not row[1].strip():
            raise DamagedError(where, "is not FROM,TO", "bnstat diff OLD NEW --map writes such")
        old, new = row[0].strip(), row[1].strip()
        if old not in spelt:
            raise NotFoundError(where, f"no layer is called {printable(old[:200])!r}")
        if spelt[old] in renamed:
            raise DamagedError(where, f"{printable(old[:200])!r} is there a second time")
        renamed[spelt[old]] = new
    return renamed
