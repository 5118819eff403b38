"""The tensors in what a pickle describes, by the names that their author knows.

A checkpoint is a dict of dicts; the state dict in it is called `state_dict`, `model` or the like,
and training in parallel or compiled puts `module.` or `_orig_mod.` before every name of it. A
module that was saved whole keeps its tensors in `_parameters` and `_buffers`, its children in
`_modules`; a module of TorchScript keeps all of them in its state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bnstat.formats.contents import Layer
from bnstat.formats.pytorch.pickled import BudgetError, Opaque, legible
from bnstat.formats.pytorch.script import FLAT, is_module, is_store
from bnstat.formats.pytorch.tensors import Array, Tensor, array_of

_WRAPPERS: Final = frozenset(
    {
        "state_dict",
        "model",
        "full_model",
        "model_state_dict",
        "model_state",
        "model_dict",
        "net",
        "network",
        "params",
        "weights",
    }
)
"""What checkpoints call the state dict in them; no part of a layer's name."""

_AVERAGES: Final = frozenset(
    {
        "ema",
        "ema_model",
        "model_ema",
        "ema_state_dict",
        "state_dict_ema",
        "params_ema",
        "ema_params",
        "ema_weights",
    }
)
"""The same of an exponential moving average of them."""

_AVERAGED: Final = "/ExponentialMovingAverage"
"""What TensorFlow appends to the name of such a variable."""

_PARALLEL: Final = re.compile(r"^(?:module\.|_orig_mod\.)+")
_COMPILED: Final = re.compile(r"\._orig_mod(?=\.)")

_ALONE: Final = "tensor"
"""What a tensor is called that was saved by itself."""

_DEEPEST: Final = 64
_MOST_VALUES: Final = 1 << 22
_MOST_NAMES: Final = 1 << 27
"""Characters of all names together, which grow with what is around them."""
_LONGEST_INDEX: Final = 1 << 63

_LIGHTNING: Final = "pytorch-lightning_version"


@dataclass
class Found:
    """What a pickle holds.

    Attributes:
        tensors: key -> tensor, in the order of the file.
        names: key -> the name that its author knows.
        layers: the modules, where the model was saved whole, in the order of their making.
        writer: the library that wrote it, where it says so.
        step: the training step, where it says so.
        in_order: whether the tensors come in the order in which the program made them.
    """

    tensors: dict[str, Tensor | Array] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    writer: str | None = None
    step: int | None = None
    in_order: bool = True


def collect(root: Any) -> Found:
    """All tensors below an object.

    Raises:
        BudgetError: it holds far more than any network.
    """
    found = Found()
    where: dict[str, tuple[str, ...]] = {}
    for path, value in _walk(root):
        if isinstance(value, Tensor | Array):
            key = _unused("/".join(path) or _ALONE, found.tensors)
            found.tensors[key] = value
            where[key] = path or (_ALONE,)
        elif isinstance(value, Opaque):
            found.layers += _layer(path, value)
    _drop_repeated(found, where)
    found.names = _names(where)
    if is_store(root):
        found.names = {key: name.replace("|", ".") for key, name in found.names.items()}
        found.in_order = False
    if isinstance(root, dict):
        version, step = root.get(_LIGHTNING), root.get("global_step")
        found.writer = f"PyTorch Lightning {legible(version)}" if isinstance(version, str) else None
        found.step = step if type(step) is int and 0 <= step < _LONGEST_INDEX else None
    return found


def _drop_repeated(found: Found, where: dict[str, tuple[str, ...]]) -> None:
    """Drop tensors of a state dict that are the very tensors of a whole model in the same file.

    Both have the same name in their container and the same numbers in the same storage. A tensor
    that has two names within one container stays as it is.
    """
    of_modules = [key for layer in found.layers for key in layer.variables.values()]

    def identity(key: str) -> tuple[object, ...] | None:
        tensor = found.tensors.get(key)
        if not isinstance(tensor, Tensor):
            return None
        name = _COMPILED.sub("", _PARALLEL.sub("", where[key][-1]))
        return name, tensor.storage, tensor.dtype, tensor.offset, tensor.shape, tensor.strides

    kept = {identity(key) for key in of_modules} - {None}
    for key in found.tensors.keys() - set(of_modules):
        if identity(key) in kept:
            del found.tensors[key], where[key]


def _walk(root: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the tensors and containers below an object with their paths, in stored order.

    A container that has several paths is yielded once, with its first path. Names within a module
    are joined by dots to one part of the path.
    """
    stack: list[tuple[tuple[str, ...], Any, bool, int]] = [((), root, False, 0)]
    seen: set[int] = set()
    count = length = 0
    while stack:
        path, value, in_module, depth = stack.pop()
        count, length = count + 1, length + sum(map(len, path))
        if count > _MOST_VALUES or length > _MOST_NAMES:
            raise BudgetError("more objects, or longer names, than any network has")
        if isinstance(value, Tensor):
            yield path, value
            continue
        if isinstance(value, Opaque) and (array := array_of(value)) is not None:
            yield path, array
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield path, value
        if depth > _DEEPEST:
            continue
        module = _module_parts(value)
        if module is not None:
            below = [
                (_dotted(path, name, in_module), each, True, depth + 1)
                for name, each in module
                if _is_worth(each)
            ]
        else:
            below = [
                ((*path, _text(key)), each, False, depth + 1)
                for key, each in _items(value)
                if _is_worth(each)
            ]
        stack += reversed(below)


def _is_worth(value: Any) -> bool:
    """Return True if there may be tensors in a value."""
    return isinstance(value, Tensor | Opaque) or (
        isinstance(value, dict | list | tuple) and bool(value)
    )


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif isinstance(value, Opaque):
        yield from value.items.items()
        if isinstance(value.state, dict):
            yield from value.state.items()


def _module_parts(value: Any) -> list[tuple[str, Any]] | None:
    """The tensors of a module that was saved whole, then its children; None of other objects."""
    state = value.state if isinstance(value, Opaque) else None
    if is_module(value):
        return [(_text(name), each) for name, each in _items(state)]
    if not isinstance(state, dict) or not isinstance(state.get("_modules"), dict):
        return None
    parts = (state.get(part) for part in ("_parameters", "_buffers", "_modules"))
    return [(_text(name), each) for part in parts for name, each in _items(part)]


def _dotted(path: tuple[str, ...], name: str, in_module: bool) -> tuple[str, ...]:
    return (*path[:-1], f"{path[-1]}.{name}") if in_module else (*path, name)


def _layer(path: tuple[str, ...], module: Opaque) -> Iterator[Layer]:
    """A module of which the file tells the class, unless it only has others in it."""
    state = module.state if isinstance(module.state, dict) else {}
    is_script = is_module(module)
    if str(module.kind) == FLAT or not (is_script or isinstance(state.get("_modules"), dict)):
        return
    parts = [state] if is_script else [state.get("_parameters"), state.get("_buffers")]
    variables = {
        _text(name): "/".join(_dotted(path, _text(name), bool(path)))
        for part in parts
        for name, value in _items(part)
        if isinstance(value, Tensor)
    }
    if variables:
        config = {key: value for key, value in state.items() if type(value) in _PLAIN}
        name = path[-1] if path else ""
        yield Layer(name, str(module.kind), config, variables, key="/".join(path))


_PLAIN: Final = (bool, int, float, str)


def _names(where: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The author's names of the tensors, from the ways to them."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for key, path in where.items():
        groups.setdefault(path[:-1], []).append(key)
    names: dict[str, str] = {}
    taken: set[str] = set()
    for outer, keys in groups.items():
        is_parallel = all(_PARALLEL.match(where[key][-1]) for key in keys)
        shown = [part for part in outer if part not in _WRAPPERS | _AVERAGES]
        averaged = _AVERAGED if any(part in _AVERAGES for part in outer) else ""
        for key in keys:
            own = where[key][-1]
            own = _COMPILED.sub("", _PARALLEL.sub("", own) if is_parallel else own)
            name = "/".join([*shown, own]) + averaged
            names[key] = key if name in taken else name
            taken.add(names[key])
    return names


def _unused(key: str, taken: Mapping[str, object]) -> str:
    number, base = 1, key
    while key in taken:
        number += 1
        key = f"{base}#{number}"
    return key


def _text(key: Any) -> str:
    """A key of a dict as text."""
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    if isinstance(key, str):
        return legible(key)
    if isinstance(key, int) and abs(key) < _LONGEST_INDEX:
        return str(key)
    return "?"
