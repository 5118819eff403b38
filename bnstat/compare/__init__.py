"""Two models to their differences; many to a history."""

from bnstat.compare.diff import (
    REMARKS,
    Difference,
    LayerChange,
    RoleChange,
    SettingChange,
    diff,
)
from bnstat.compare.history import Checkpoint, History, Skipped, Track, history

__all__ = [
    "REMARKS",
    "Checkpoint",
    "Difference",
    "History",
    "LayerChange",
    "RoleChange",
    "SettingChange",
    "Skipped",
    "Track",
    "diff",
    "history",
]
