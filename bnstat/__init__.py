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
    from bnstat.checks import Finding as Finding
    from bnstat.checks import Thresholds as Thresholds
    from bnstat.checks import check as check
    from bnstat.compare.diff import Difference as Difference
    from bnstat.compare.diff import diff as diff
    from bnstat.errors import AmbiguousError as AmbiguousError
    from bnstat.errors import BnstatError as BnstatError
    from bnstat.errors import ChangedError as ChangedError
    from bnstat.errors import DamagedError as DamagedError
    from bnstat.errors import NotFoundError as NotFoundError
    from bnstat.errors import UnknownFormatError as UnknownFormatError
    from bnstat.errors import UnsupportedError as UnsupportedError
    from bnstat.estimate.drift import Drift as Drift
    from bnstat.estimate.drift import drift as drift
    from bnstat.estimate.recalibration import Recalibration as Recalibration
    from bnstat.estimate.recalibration import recalibrate as recalibrate
    from bnstat.loading import load as load
    from bnstat.loading import load_all as load_all
    from bnstat.mending.apply import apply as apply
    from bnstat.mending.pairing import Applied as Applied
    from bnstat.model import BatchNorm as BatchNorm
    from bnstat.model import Model as Model
    from bnstat.model import Source as Source
    from bnstat.model import Variable as Variable
    from bnstat.run_history import History as History
    from bnstat.run_history import history as history


__version__ = "1.0.0"

_HOMES = {
    "bnstat.checks": ("Finding", "Thresholds", "check"),
    "bnstat.compare.diff": ("Difference", "diff"),
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
    "bnstat.mending.apply": ("apply",),
    "bnstat.mending.pairing": ("Applied",),
    "bnstat.estimate.drift": ("Drift", "drift"),
    "bnstat.estimate.recalibration": ("Recalibration", "recalibrate"),
    "bnstat.model": ("BatchNorm", "Model", "Source", "Variable"),
    "bnstat.run_history": ("History", "history"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bnstat' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
