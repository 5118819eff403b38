"""Models and their batch-normalization layers: what every command works on.

A `Model` is both a sequence of its layers, in the order of the network where the file tells
it, and a mapping from their names. Arrays are read when they are first asked for, then kept.
"""

from bnstat.model.layers import ROLES, BatchNorm, Evidence
from bnstat.model.models import Model, Source
from bnstat.model.summary import Summary, as_float64
from bnstat.model.variables import (
    Array,
    PrecedingBias,
    Slots,
    StatisticsMode,
    StatisticsUse,
    Variable,
    Verdict,
    fetch,
    squeezed,
)
from bnstat.printable import printable

__all__ = [
    "ROLES",
    "Array",
    "BatchNorm",
    "Evidence",
    "Model",
    "PrecedingBias",
    "Slots",
    "Source",
    "StatisticsMode",
    "StatisticsUse",
    "Summary",
    "Variable",
    "Verdict",
    "as_float64",
    "fetch",
    "printable",
    "squeezed",
]
