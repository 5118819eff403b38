"""A model as the table that a notebook shows."""

from __future__ import annotations

import html

from bnstat.model import ROLES, BatchNorm, Model, Summary, printable


def table(model: Model) -> str:
    """A table in HTML, one row a layer: mean and deviation of each of its arrays."""
    head = "".join(f"<th>{title}</th>" for title in ("layer", "channels", *ROLES))
    rows = "".join(
        f"<tr><td>{html.escape(printable(layer.name))}</td><td>{layer.channels}</td>"
        + "".join(f"<td>{_cell(layer, role)}</td>" for role in ROLES)
        + "</tr>"
        for layer in model.layers
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(layer: BatchNorm, role: str) -> str:
    array = layer.array(role)
    if array is None:
        return "&ndash;"
    numbers = Summary.of(array)
    return f"{numbers.mean:.4g} &plusmn; {numbers.std:.3g}"
