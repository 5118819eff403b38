"""Models and their batch-normalization layers, which every command works on.

A `Model` is both a sequence of its layers, in the order of the network if the file records it, and
a mapping from their names. An array is read on first access, then kept.
"""

from __future__ import annotations

from bnstat.errors import printable
from bnstat.model.layers import ROLES, BatchNorm, Evidence
from bnstat.model.models import Model, Source
from bnstat.model.variables import (
    Array,
    Explanation,
    PrecedingBias,
    Slots,
    StatisticsMode,
    StatisticsUse,
    Summary,
    Variable,
    as_float64,
    fetch,
    squeezed,
)

__all__ = [
    "ROLES",
    "Array",
    "BatchNorm",
    "Evidence",
    "Explanation",
    "Model",
    "PrecedingBias",
    "Slots",
    "Source",
    "StatisticsMode",
    "StatisticsUse",
    "Summary",
    "Variable",
    "as_float64",
    "fetch",
    "printable",
    "squeezed",
]
