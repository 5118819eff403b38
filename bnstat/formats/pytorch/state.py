"""The tensors in an unpickled object, under the names in the author's code.

A checkpoint is a dict of dicts. The key of the state dict is `state_dict`, `model` or similar.
Parallel training and compilation prefix every name in the state dict with `module.` or
`_orig_mod.`. A module that was saved whole keeps its tensors in `_parameters` and `_buffers` and
its children in `_modules`; a TorchScript module keeps tensors and children in its state.

A TorchScript archive also contains the code of its modules' classes. For example, the code of the
class `__torch__.torch.nn.modules.batchnorm.BatchNorm2d` is in the member
`NAME/code/__torch__/torch/nn/modules/batchnorm.py`. The code is neither run nor parsed. bnstat
searches the class of a module with running statistics for two kinds of lines: constants
(`eps : Final[float] = 1.0000000000000001e-05`), and calls of `torch.batch_norm`, whose arguments
include momentum and epsilon. A traced module has only calls.

LibTorch gives each module the class `__torch__.Module`. tch-rs saves all variables in one module
of this class, in arbitrary order, and replaces the dots in names by `|`.

Sources: torch/csrc/jit/serialization/python_print.cpp; aten/src/ATen/native/native_functions.yaml,
`batch_norm`; tch-rs, src/wrappers/tensor.rs, `save_multi`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bnstat.formats.contents import Layer
from bnstat.formats.pytorch.pickled import BudgetError, Opaque, legible
from bnstat.formats.pytorch.tensors import Array, Tensor, array_of
from bnstat.storage.files import Folder

_WRAPPERS: Final = {
    "state_dict", "model", "full_model", "model_state_dict", "model_state", "model_dict", "net",
    "network", "params", "weights",
}  # fmt: skip
"""Names of the state dict in a checkpoint; they are not part of a layer's name."""
_AVERAGES: Final = {
    "ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema",
    "ema_params", "ema_weights",
}  # fmt: skip
"""Names of the exponential moving average of a state dict in a checkpoint."""
_AVERAGED: Final = "/ExponentialMovingAverage"
"""TensorFlow's suffix for the name of a moving average."""
_PARALLEL: Final = re.compile(r"^(?:module\.|_orig_mod\.)+")
_AVERAGED_MODEL: Final = "n_averaged"
"""The count in an `AveragedModel`, whose other tensors have the prefix `module.`; see
torch/optim/swa_utils.py."""
_COMPILED: Final = re.compile(r"\._orig_mod(?=\.)")
_LIGHTNING: Final = "pytorch-lightning_version"

_ALONE: Final = "tensor"
"""The name of a tensor that was saved by itself."""
_DEEPEST: Final = 64
_MOST_VALUES: Final = 1 << 22
_MOST_NAMES: Final = 1 << 27
"""Characters of all names together; a name grows with the depth."""
_LONGEST_INDEX: Final = 1 << 63
_PLAIN: Final = (bool, int, float, str)

_ROOT: Final = "__torch__"
_FLAT: Final = f"{_ROOT}.Module"
"""The class that LibTorch gives every module."""
_STATISTICS: Final = frozenset({"running_mean", "running_var"})

_CONSTANT: Final = re.compile(r"^  (eps|momentum) : Final\[float\] = (\S{1,40})$", re.MULTILINE)
_ALIAS: Final = re.compile(r"^ *(\w{1,80}) = __torch__\.torch\.nn\.functional\.batch_norm$", re.M)
_CALLS: Final = ("torch.batch_norm(", "torch.nn.functional.batch_norm(")
_ARGUMENTS: Final = 8
"""The least number of arguments of a call. Momentum and epsilon precede the last one, which is a
flag, or empty because of a trailing comma."""
_LONGEST_CODE: Final = 1 << 20


@dataclass
class Collected:
    """The tensors of a pickle, and the recorded facts about the model.

    Attributes:
        tensors: key -> tensor, in the order of the file.
        names: key -> the name in the author's code.
        layers: the modules of a model that was saved whole, in the order of their creation.
        writer: the library that wrote the file, if recorded.
        in_order: True if the tensors are in the order of their creation.
    """

    tensors: dict[str, Tensor | Array] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    writer: str | None = None
    step: int | None = None
    in_order: bool = True


def collect(root: Any) -> Collected:
    """Return all tensors in an unpickled object; raise a `BudgetError` if it is too large."""
    result = Collected()
    paths: dict[str, tuple[str, ...]] = {}
    for path, value in _walk(root):
        if isinstance(value, Tensor | Array):
            key = base = "/".join(path) or _ALONE
            number = 1
            while key in result.tensors:
                number += 1
                key = f"{base}#{number}"
            result.tensors[key] = value
            paths[key] = path or (_ALONE,)
        elif isinstance(value, Opaque):
            result.layers += _layer(path, value)
    _drop_repeated(result, paths)
    result.names = _names(paths)
    is_flat = _is_script_module(root) and str(root.kind) == _FLAT
    if is_flat and not any(map(_is_script_module, root.state.values())):  # of tch-rs
        result.names = {key: name.replace("|", ".") for key, name in result.names.items()}
        result.in_order = False
    if isinstance(root, dict):
        version, step = root.get(_LIGHTNING), root.get("global_step")
        if isinstance(version, str):
            result.writer = f"PyTorch Lightning {legible(version)}"
        if type(step) is int and 0 <= step < _LONGEST_INDEX:
            result.step = step
    return result


def _drop_repeated(collected: Collected, paths: dict[str, tuple[str, ...]]) -> None:
    """Drop the tensors of a state dict that are also in a whole model in the same file.

    Two tensors are equal if their names, without the path of the container, and their views of a
    storage are the same.
    """
    of_modules = [key for layer in collected.layers for key in layer.variables.values()]

    def identity(key: str) -> tuple[object, ...] | None:
        tensor = collected.tensors.get(key)
        if not isinstance(tensor, Tensor):
            return None
        name = _COMPILED.sub("", _PARALLEL.sub("", paths[key][-1]))
        return name, tensor.storage, tensor.dtype, tensor.offset, tensor.shape, tensor.strides

    kept = {identity(key) for key in of_modules} - {None}
    for key in collected.tensors.keys() - set(of_modules):
        if identity(key) in kept:
            del collected.tensors[key], paths[key]


def _walk(root: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, value) for each tensor and container in an object, in stored order.

    A container with several paths is yielded once. The names of nested modules, joined by dots,
    form one component of a path.
    """
    stack: list[tuple[tuple[str, ...], Any, bool, int]] = [((), root, False, 0)]
    seen: set[int] = set()
    count = length = 0
    while stack:
        path, value, in_module, depth = stack.pop()
        count, length = count + 1, length + sum(map(len, path))
        if count > _MOST_VALUES or length > _MOST_NAMES:
            raise BudgetError("it has more objects, or longer names, than any network")
        if isinstance(value, Opaque):
            value = array_of(value) or value
        if isinstance(value, Tensor | Array):
            yield path, value
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield path, value
        if depth > _DEEPEST:
            continue
        module = _module_parts(value)
        # Most values are numbers, so their paths are not made.
        children = [
            (key, child)
            for key, child in (_items(value) if module is None else module)
            if isinstance(child, Tensor | Opaque)
            or (isinstance(child, dict | list | tuple) and child)
        ]
        for key, child in reversed(children):
            inner = _dotted(path, _text(key), in_module and module is not None)
            stack.append((inner, child, module is not None, depth + 1))


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif isinstance(value, Opaque):
        yield from value.items.items()
        if isinstance(value.state, dict):
            yield from value.state.items()


def _module_parts(value: Any) -> list[tuple[Any, Any]] | None:
    """Return (name, value) pairs: a module's tensors, then its children; None if not a module."""
    state = value.state if isinstance(value, Opaque) else None
    if _is_script_module(value):
        return list(_items(state))
    if not isinstance(state, dict) or not isinstance(state.get("_modules"), dict):
        return None
    parts = (state.get(part) for part in ("_parameters", "_buffers", "_modules"))
    return [item for part in parts for item in _items(part)]


def _dotted(path: tuple[str, ...], name: str, in_module: bool) -> tuple[str, ...]:
    return (*path[:-1], f"{path[-1]}.{name}") if in_module else (*path, name)


def _layer(path: tuple[str, ...], module: Opaque) -> Iterator[Layer]:
    """Yield a module as a layer if the module owns tensors and its class is recorded."""
    variables = {
        _text(name): "/".join(_dotted(path, _text(name), bool(path)))
        for name, value in _module_parts(module) or ()
        if isinstance(value, Tensor)
    }
    if variables and str(module.kind) != _FLAT:
        config = {key: value for key, value in module.state.items() if type(value) in _PLAIN}
        name = path[-1] if path else ""
        yield Layer(name, str(module.kind), config, variables, key="/".join(path))


def _names(paths: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return key -> name in the author's code; `paths` maps each key to the path of a tensor."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for key, path in paths.items():
        groups.setdefault(path[:-1], []).append(key)
    names: dict[str, str] = {}
    taken: set[str] = set()
    for outer, keys in groups.items():
        own_names = {paths[key][-1] for key in keys} - {_AVERAGED_MODEL}
        is_parallel = all(map(_PARALLEL.match, own_names))
        shown = [part for part in outer if part not in _WRAPPERS | _AVERAGES]
        averaged = _AVERAGED if any(part in _AVERAGES for part in outer) else ""
        for key in keys:
            own = paths[key][-1]
            own = _COMPILED.sub("", _PARALLEL.sub("", own) if is_parallel else own)
            name = "/".join([*shown, own]) + averaged
            names[key] = key if name in taken else name
            taken.add(names[key])
    return names


def _text(key: Any) -> str:
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    if isinstance(key, str):
        return legible(key)
    return str(key) if isinstance(key, int) and abs(key) < _LONGEST_INDEX else "?"


def _is_script_module(value: Any) -> bool:
    return (
        isinstance(value, Opaque)
        and value.kind.module.partition(".")[0] == _ROOT
        and isinstance(value.state, dict)
    )


def with_settings(layers: Sequence[Layer], top: Folder | None) -> Sequence[Layer]:
    """Return the layers with the settings of batch norm that the archive's code contains.

    `top` is the folder that may contain `code`; None for a file that is not an archive.
    """
    names = {layer.class_name or "" for layer in layers if layer.variables.keys() >= _STATISTICS}
    members = {
        name: f"code/{name.rpartition('.')[0].replace('.', '/')}.py"
        for name in names
        if name.startswith(f"{_ROOT}.")
    }
    if top is None or not members:
        return layers
    top.expect(set(members.values()))
    code = {}
    for member in set(members.values()):
        file = top.file(member)
        if file is not None and file.size <= _LONGEST_CODE:
            code[member] = file.read().decode("utf-8", "replace")
    settings = {name: _settings(code.get(member, ""), name) for name, member in members.items()}
    return [
        replace(layer, config={**layer.config, **settings.get(layer.class_name or "", {})})
        for layer in layers
    ]


def _settings(code: str, class_name: str) -> Mapping[str, float]:
    """Return `eps` and `momentum` from the code of a class; empty if `eps` is missing."""
    start = f"\n{code}".find(f"\nclass {class_name.rpartition('.')[2]}(")
    if start < 0:
        return {}
    end = code.find("\nclass ", start + 1)
    body = code[start : end if end > 0 else len(code)]
    settings = {name: _number(text) for name, text in _CONSTANT.findall(body)}
    calls = set(_calls(body))
    if len(calls) == 1:
        ((momentum, epsilon),) = calls
        settings = {"momentum": momentum, "eps": epsilon} | settings
    # Without epsilon, a momentum would be mistaken for Keras's.
    if settings.get("eps") is None:
        return {}
    return {name: number for name, number in settings.items() if number is not None}


def _calls(body: str) -> Iterator[tuple[float | None, float | None]]:
    """Yield (momentum, epsilon) of each call of batch norm; None replaces a non-literal value."""
    starts = (*_CALLS, *(f" {alias}(" for alias in _ALIAS.findall(body)[:_ARGUMENTS]))
    for line in body.splitlines():
        if any(start in line for start in starts):
            arguments = line.rstrip(") ").split(",")
            if len(arguments) >= _ARGUMENTS:
                yield _number(arguments[-3]), _number(arguments[-2])


def _number(text: str) -> float | None:
    try:
        return float(text.strip())
    except ValueError:
        return None
