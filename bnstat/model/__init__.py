"""Models and their batch-normalization layers, the data of every command.

A `Model` is both a sequence of layers, in network order if the file records the order, and a
mapping from layer names to layers. An array is read on first access and then cached.
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
