"""Tensors that are named as `bnstat export` names them, in NPZ, safetensors or another format.

Names alone do not prove that tensors belong to batch norm, for example Flax's `batch_stats/x/mean`
and `batch_stats/x/var` without a scale and a bias. Where every tensor of a file has a name that
export gives it, and every layer has its statistics, the file is read as an export.
"""

from __future__ import annotations

from collections.abc import Iterable

from bnstat.exchange.form import NAMINGS, PARTS_FOLDED, Naming
from bnstat.exchange.values import refused_folded
from bnstat.model import ROLES, BatchNorm, Model, Variable


def as_exported(model: Model) -> Model:
    """Return the layers that a model's tensors are named after, else the model as it is.

    Raises:
        UnsupportedError: the tensors are scales and shifts.
    """
    for naming in NAMINGS.values():
        layers = _layers(naming, model.stored.values())
        parts = {part for held in layers.values() for part in held}
        if parts == {*PARTS_FOLDED} and not model.layers:
            raise refused_folded(model.source.path)
        if layers and all({"moving_mean", "moving_variance"} <= held.keys() <= {*ROLES}
                          for held in layers.values()):  # fmt: skip
            return Model(
                model.source,
                [BatchNorm(name, held) for name, held in layers.items()],
                stored=model.stored,
            )
    return model


def _layers(naming: Naming, tensors: Iterable[Variable]) -> dict[str, dict[str, Variable]]:
    """Return a layer's name -> part -> tensor; nothing where a name is another framework's."""
    layers: dict[str, dict[str, Variable]] = {}
    for tensor in tensors:
        parsed = naming.parsed(tensor.key)
        if parsed is None:
            return {}
        name, part = parsed
        layers.setdefault(name, {})[part] = tensor
    return layers
