"""What a file of PyTorch's holds: state dicts, checkpoints around them, whole models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bnstat.formats.contents import Contents
from bnstat.formats.exchange.numbers import beyond_budget, refuse
from bnstat.formats.exchange.pytorch.arrays import BUILDERS, Array
from bnstat.formats.exchange.pytorch.containers import PlaceOf, errors, read_legacy, read_zip
from bnstat.formats.exchange.pytorch.file import is_legacy
from bnstat.formats.exchange.pytorch.pickled import Global, Opaque
from bnstat.formats.exchange.pytorch.script import with_settings
from bnstat.formats.exchange.pytorch.state import Found, collect
from bnstat.formats.exchange.pytorch.tensors import Tensor, call, find_tensor, read_tensor
from bnstat.formats.exchange.quantized import Scales
from bnstat.model import Source, Variable
from bnstat.storage.files import File
from bnstat.storage.ranges import Range

_HARMLESS: Final = (
    "torch.device",
    "torch.serialization._get_layout",
    "torch.jit._pickle.build_intlist",
    "torch.nn.backends.thnn._get_thnn_function_backend",
    *BUILDERS,
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
"""What may stay unbuilt without a word: it holds no tensors."""

_MODULES: Final = ("torch.nn.modules.", "__torch__.")
"""PyTorch's own modules and those of TorchScript, whose tensors are read all the same."""

_MOST_NAMED: Final = 6


def contents_of(file: File, source: Source) -> Contents:
    """The tensors of a file that `recognises`.

    A tensor's key is the way to it: `state_dict/layer1.0.bn1.weight`.

    Raises:
        DamagedError: the file is truncated, or contradicts itself.
        UnsupportedError: it is larger than what is read, or of a kind that is not.
    """
    unbuilt: dict[str, None] = {}

    def called(function: Global, arguments: tuple[Any, ...]) -> Any:
        built = call(function, arguments)
        name = str(function)
        if isinstance(built, Opaque) and not name.startswith(_MODULES) and name not in _HARMLESS:
            unbuilt.setdefault(name)
        return built

    read = read_legacy if is_legacy(file) else read_zip
    saved = read(file, called)
    place_of = saved.place_of
    with errors(file):
        found = collect(saved.root)
    variables = {
        key: _variable(key, found.names[key], tensor, place_of, f"{file.path}: {key}")
        for key, tensor in found.tensors.items()
    }
    sizes = {key: tensor.nbytes for key, tensor in found.tensors.items()}
    for key in beyond_budget(sizes, file.size):
        variables[key] = replace(variables[key], reader=partial(refuse, f"{file.path}: {key}"))
    return Contents(
        replace(source, format="pytorch", writer=found.writer, step=_training_step(source, found)),
        variables,
        names=found.names,
        layers=with_settings(found.layers, saved.top),
        variables_in_order=found.in_order,
        notes=_unbuilt_note(list(unbuilt)),
    )


def _variable(
    key: str, name: str, tensor: Tensor | Array, place_of: PlaceOf, where: str
) -> Variable:
    if isinstance(tensor, Array):
        return Variable(key, name, tensor.dtype, tensor.shape, partial(tensor.read, where))
    is_quantized = tensor.quantizer is not None
    return Variable(
        key,
        name,
        "float32" if is_quantized else tensor.dtype,
        tensor.shape,
        partial(_read, tensor, place_of, where),
        partial(_find, tensor, place_of),
        partial(_step, tensor, place_of, where) if is_quantized else None,
    )


def _read(tensor: Tensor, place_of: PlaceOf, where: str) -> NDArray[np.generic]:
    stored = read_tensor(tensor, place_of(tensor.storage), where)
    return _scales(tensor, place_of, where).unpack(stored, where) if tensor.quantizer else stored


def _step(tensor: Tensor, place_of: PlaceOf, where: str) -> NDArray[np.generic]:
    return _scales(tensor, place_of, where).step(tensor.shape, where)


def _scales(tensor: Tensor, place_of: PlaceOf, where: str) -> Scales:
    """How a tensor is quantized. One scale PyTorch takes as float32, several as they are."""
    scale, zero, axis = tensor.quantizer or (1.0, 0, 0)
    with np.errstate(over="ignore"):
        scales, zeros = (
            read_tensor(each, place_of(each.storage), where).astype(np.float64).ravel()
            if isinstance(each, Tensor)
            else np.array([each], np.float32).astype(np.float64)
            for each in (scale, zero)
        )
    return Scales(scales, zeros, axis)


def _find(tensor: Tensor, place_of: PlaceOf) -> Sequence[Range]:
    places = find_tensor(tensor, place_of(tensor.storage))
    return [place._replace(part=None) for place in places] if tensor.quantizer else places


def _training_step(source: Source, found: Found) -> int | None:
    return found.step if source.step is None else source.step


def _unbuilt_note(names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    listed = ", ".join(names[:_MOST_NAMED])
    return [f"holds objects of classes that were not loaded, for that runs code: {listed}{more}"]
