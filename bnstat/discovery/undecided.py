"""What has to be said of layers that a file leaves undecided, and what decides them."""

from __future__ import annotations

from collections.abc import Sequence

from bnstat.formats.contents import Contents
from bnstat.model import BatchNorm


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
