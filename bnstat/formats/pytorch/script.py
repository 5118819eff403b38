"""TorchScript archives: modules whose classes are code in the archive.

    NAME/data.pkl                              the modules; each object's class is one of the code
    NAME/code/__torch__/torch/nn/modules/batchnorm.py
                                               `__torch__.torch.nn.modules.batchnorm.BatchNorm2d`

The code is neither run nor parsed as a program. Two kinds of lines are searched for in the class of
a module with running statistics: constants (`eps : Final[float] = 1.0000000000000001e-05`), and
the arguments of `torch.batch_norm`. A traced module has only the second kind.

LibTorch gives each module the class `__torch__.Module`. tch-rs saves all variables in one of them,
in no order, and writes `|` for the dots of their names.

Sources: torch/csrc/jit/serialization/python_print.cpp; aten/src/ATen/native/native_functions.yaml,
`batch_norm`; tch-rs, src/wrappers/tensor.rs, `save_multi`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
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
        and not any(is_module(each) for each in value.state.values())
    )


def with_settings(layers: Iterable[Layer], top: Folder | None) -> list[Layer]:
    """Return the layers, with epsilon and momentum added from the archive's code where possible.

    Args:
        layers: the modules of the archive.
        top: the folder of the archive that holds `code`.
    """
    layers = list(layers)
    wanted = {
        layer.class_name: _member(layer.class_name)
        for layer in layers
        if layer.class_name is not None
        and layer.class_name.startswith(f"{_ROOT}.")
        and layer.variables.keys() >= _STATISTICS
    }
    if top is None or not wanted:
        return layers
    top.expect(set(wanted.values()))
    code = {member: _code(top, member) for member in set(wanted.values())}
    settings = {name: _settings(code[member], name) for name, member in wanted.items()}
    return [
        replace(layer, config={**layer.config, **settings.get(layer.class_name or "", {})})
        for layer in layers
    ]


def _member(class_name: str) -> str:
    """Return the member of the archive that contains a class."""
    return f"code/{class_name.rpartition('.')[0].replace('.', '/')}.py"


def _code(top: Folder, member: str) -> str:
    file = top.file(member)
    if file is None or file.size > _LONGEST_CODE:
        return ""
    return file.read().decode("utf-8", "replace")


def _settings(code: str, class_name: str) -> Mapping[str, float]:
    """Return epsilon and momentum of a class under the names of PyTorch's arguments."""
    body = _body(code, class_name.rpartition(".")[2])
    found = {name: _number(text) for name, text in _CONSTANT.findall(body)}
    calls = set(_calls(body))
    if len(calls) == 1:
        ((momentum, epsilon),) = calls
        found = {"momentum": momentum, "eps": epsilon} | found
    # A momentum alone would be taken for one of Keras.
    is_whole = found.get("eps") is not None
    return {name: number for name, number in found.items() if number is not None and is_whole}


def _body(code: str, name: str) -> str:
    """Return the source of a class, or an empty text."""
    start = f"\n{code}".find(f"\nclass {name}(")
    if start < 0:
        return ""
    end = code.find("\nclass ", start + 1)
    return code[start : end if end > 0 else len(code)]


def _calls(body: str) -> Iterator[tuple[float | None, float | None]]:
    """Yield momentum and epsilon of each call of batch norm, None for what is not a literal."""
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
