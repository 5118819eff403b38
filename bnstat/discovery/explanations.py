"""Why each variable of a file was, or was not, taken as batch norm."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bnstat.discovery.lookalikes import set_apart
from bnstat.formats.contents import Contents
from bnstat.model import BatchNorm, Verdict

_LEFT_OVER = (
    (re.compile(r"/(moving_mean|moving_variance)$"), "moving statistic without its counterpart"),
    (
        re.compile(r"(^|[/.])running_(mean|var)$"),
        "running statistic without its counterpart, or with a count: of data that is normalized",
    ),
    (
        re.compile(r"(^|/)(gamma|beta|scale|offset)$"),
        "no moving statistics beside it: layer, group or instance norm, or not saved",
    ),
)


def explain(
    contents: Contents, layers: Sequence[BatchNorm], incomplete: Sequence[BatchNorm]
) -> list[Verdict]:
    """A verdict for every variable, in the order of the file."""
    taken = {}
    for layer, reason in [
        *((layer, f"found by {layer.evidence}") for layer in layers),
        *((layer, _why_incomplete(layer)) for layer in incomplete),
    ]:
        for role, variable in layer.variables.items():
            taken[variable.key] = Verdict(variable.key, layer.name, role, reason)
        for label, variable in layer.extra.items():
            taken[variable.key] = Verdict(variable.key, layer.name, label, "kept beside the roles")
        for variable in layer.undecided:
            taken[variable.key] = Verdict(
                variable.key, layer.name, None, "the file does not tell its role"
            )
    return [
        taken.get(key) or Verdict(key, None, None, _reason(key, contents.name_of(key)))
        for key in contents.variables
    ]


def _why_incomplete(layer: BatchNorm) -> str:
    if layer.uses_batch_statistics:
        return "its layer normalizes each batch by the statistics of that batch"
    return "its layer's moving statistics are not in the file"


def _reason(key: str, name: str) -> str:
    if (reason := set_apart(key, name)) is not None:
        return reason
    for pattern, reason in _LEFT_OVER:
        if pattern.search(name):
            return reason
    return "its name is no batch-norm variable's"


def what_decides(
    contents: Contents, layers: Sequence[BatchNorm], incomplete: Sequence[BatchNorm]
) -> list[str]:
    """Notes that name what is undecided in a file, with the option that decides it.

    Args:
        contents: the file.
        layers: its batch-norm layers.
        incomplete: those that are not whole, or may be none.
    """
    decider = "--pattern ROLE=REGEX decides"
    if contents.configured is not None:
        decider = "the model's architecture decides: --config FILE"
    notes = [
        f"{layer.name} {note}: the roles of its variables are not told"
        for layer in incomplete
        for note in layer.notes
        if layer.undecided and layer.evidence == "config"
    ]
    if unsure := [one.name for one in incomplete if one.undecided and one.evidence == "name"]:
        what = "1 layer" if len(unsure) == 1 else f"{len(unsure)} layers"
        notes.append(f"{what} may be batch norm, the file does not tell: {_few(unsure)}; {decider}")
    if unsure := [layer.name for layer in layers if layer.undecided]:
        notes.append(
            f"the file does not tell the role of some variables of {_few(unsure)}; {decider}"
        )
    helps = bool(notes) or any(layer.epsilon is None for layer in layers)
    if contents.configured is not None and contents.beside is not None and helps:
        notes.append(
            f"{contents.beside} beside it may be its architecture; it is used if you say so: "
            f"--config {contents.beside}"
        )
    return notes


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
