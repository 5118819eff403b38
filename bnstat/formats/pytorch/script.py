"""TorchScript archives: modules whose classes are code in the archive.

    NAME/data.pkl                              the modules; the code contains each object's class
    NAME/code/__torch__/torch/nn/modules/batchnorm.py
                                               `__torch__.torch.nn.modules.batchnorm.BatchNorm2d`

The code is neither run nor parsed as a program. Two kinds of lines are searched for in the class of
a module with running statistics: constants (`eps : Final[float] = 1.0000000000000001e-05`), and
the arguments of `torch.batch_norm`. A traced module has only the second kind.

LibTorch gives each module the class `__torch__.Module`. tch-rs saves all variables in one such
module, in no order, and replaces the dots in names by `|`.

Sources: torch/csrc/jit/serialization/python_print.cpp; aten/src/ATen/native/native_functions.yaml,
`batch_norm`; tch-rs, src/wrappers/tensor.rs, `save_multi`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from bnstat.formats.contents import Layer
from bnstat.formats.pytorch.pickled import Opaque
from bnstat.storage.files import Folder

_ROOT: Final = "__torch__"
FLAT: Final = f"{_ROOT}.Module"
"""The class that LibTorch gives every module."""

_STATISTICS: Final = frozenset({"running_mean", "running_var"})

_CONSTANT: Final = re.compile(r"^  (eps|momentum) : Final\[float\] = (\S{1,40})$", re.MULTILINE)
_ALIAS: Final = re.compile(r"^ *(\w{1,80}) = __torch__\.torch\.nn\.functional\.batch_norm$", re.M)
_CALLS: Final = ("torch.batch_norm(", "torch.nn.functional.batch_norm(")
_ARGUMENTS: Final = 8
"""The least number of arguments of a call. Momentum and epsilon precede the last one, which is a
flag, or empty because of a trailing comma."""

_LONGEST_CODE: Final = 1 << 20


def is_module(value: Any) -> bool:
    """Return True for a module of TorchScript."""
    return (
        isinstance(value, Opaque)
        and value.kind.module.partition(".")[0] == _ROOT
        and isinstance(value.state, dict)
    )


def is_store(value: Any) -> bool:
    """Return True for a module that holds the variables of a whole network, in no order."""
    return (
        is_module(value)
        and str(value.kind) == FLAT
        and not any(is_module(child) for child in value.state.values())
    )


def with_settings(layers: Sequence[Layer], top: Folder | None) -> Sequence[Layer]:
    """Return the layers, with epsilon and momentum added from the archive's code where possible.

    Args:
        layers: the modules of the archive.
        top: the folder of the archive that contains `code`.
    """
    members = {
        layer.class_name: f"code/{layer.class_name.rpartition('.')[0].replace('.', '/')}.py"
        for layer in layers
        if layer.class_name is not None
        and layer.class_name.startswith(f"{_ROOT}.")
        and layer.variables.keys() >= _STATISTICS
    }
    if top is None or not members:
        return layers
    top.expect(set(members.values()))
    code = {member: _code(top, member) for member in set(members.values())}
    settings = {name: _settings(code[member], name) for name, member in members.items()}
    return [
        replace(layer, config={**layer.config, **settings.get(layer.class_name or "", {})})
        for layer in layers
    ]


def _code(top: Folder, member: str) -> str:
    file = top.file(member)
    if file is None or file.size > _LONGEST_CODE:
        return ""
    return file.read().decode("utf-8", "replace")


def _settings(code: str, class_name: str) -> Mapping[str, float]:
    """Return epsilon and momentum of a class under the names of PyTorch's arguments."""
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
    """Yield momentum and epsilon of each call of batch norm; None if not a literal."""
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
