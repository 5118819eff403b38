"""Display of models, layers, findings, differences and histories in notebooks.

Among the modules on which `output` depends, only this one refers to `output`: by name, with an
import when a notebook needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Displayed:
    """A base class for objects that a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Return the table as HTML."""
        html: str = notebook().html_of(self)
        return html


def notebook() -> Any:
    """Return the module `bnstat.output.notebook`."""
    return import_module("bnstat.output.notebook")
