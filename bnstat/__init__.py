"""bnstat: the batch-normalization statistics in TensorFlow and Keras files.

    import bnstat
    model = bnstat.load("model_dir")
    layer = model["fc1/BatchNorm"]
    scale, shift = layer.scale_and_shift()

A public name is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnstat.checks import Finding, Thresholds, check
    from bnstat.compare import Difference, History, diff, history
    from bnstat.errors import (
        AmbiguousError,
        BnstatError,
        ChangedError,
        DamagedError,
        NotFoundError,
        UnknownFormatError,
        UnsupportedError,
    )
    from bnstat.estimate.drift import Drift, drift
    from bnstat.estimate.recalibration import Recalibration, recalibrate
    from bnstat.loading import load, load_all
    from bnstat.mending import Applied, apply
    from bnstat.model import BatchNorm, Model, Source, Variable


__version__ = "1.0.0"

_HOMES = {
    "bnstat.checks": ("Finding", "Thresholds", "check"),
    "bnstat.compare": ("Difference", "History", "diff", "history"),
    "bnstat.errors": (
        "AmbiguousError",
        "BnstatError",
        "ChangedError",
        "DamagedError",
        "NotFoundError",
        "UnknownFormatError",
        "UnsupportedError",
    ),
    "bnstat.loading": ("load", "load_all"),
    "bnstat.mending": ("Applied", "apply"),
    "bnstat.estimate.drift": ("Drift", "drift"),
    "bnstat.estimate.recalibration": ("Recalibration", "recalibrate"),
    "bnstat.model": ("BatchNorm", "Model", "Source", "Variable"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AmbiguousError",
    "Applied",
    "BatchNorm",
    "BnstatError",
    "ChangedError",
    "DamagedError",
    "Difference",
    "Drift",
    "Finding",
    "History",
    "Model",
    "NotFoundError",
    "Recalibration",
    "Source",
    "Thresholds",
    "UnknownFormatError",
    "UnsupportedError",
    "Variable",
    "__version__",
    "apply",
    "check",
    "diff",
    "drift",
    "history",
    "load",
    "load_all",
    "recalibrate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bnstat' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
