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
