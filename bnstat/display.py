"""What notebooks show of models, layers, findings, differences and histories.

This is the only module below `output` that knows of `output`. It names modules by strings and
imports them when a notebook asks, so that nothing else depends on how things are shown.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Displayed:
    """An object that a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Return the table as HTML."""
        html: str = notebook("tables").html_of(self)
        return html


def notebook(module: str) -> Any:
    """Return a module of `bnstat.output.notebook`."""
    return import_module(f"bnstat.output.notebook.{module}")
