"""Display of models, layers, findings, differences and histories in notebooks.

This is the only module below `output` that refers to `output`: by a string, and it imports the
module when a notebook needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Displayed:
    """A base class for objects that a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Return the table as HTML."""
        html: str = notebook("tables").html_of(self)
        return html


def notebook(module: str) -> Any:
    """Return a module of `bnstat.output.notebook`."""
    return import_module(f"bnstat.output.notebook.{module}")
