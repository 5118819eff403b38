"""Display of objects in notebooks.

Modules below `output` must not import `output`. This module therefore imports
`bnstat.output.notebook` by its name, only when a notebook displays an object.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Displayed:
    """A base class for objects that a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        html: str = notebook().html_of(self)
        return html


def notebook() -> Any:
    """Return the module `bnstat.output.notebook`."""
    return import_module("bnstat.output.notebook")
