"""Comparison of models."""

from __future__ import annotations

from bnstat.compare.causes import Cause
from bnstat.compare.diff import REMARKS, Difference, LayerChange, RoleChange, SettingChange, diff
from bnstat.compare.folding import Folded
from bnstat.run_history import Checkpoint, History, Skipped, Track, history

__all__ = [
    "REMARKS",
    "Cause",
    "Checkpoint",
    "Difference",
    "Folded",
    "History",
    "LayerChange",
    "RoleChange",
    "SettingChange",
    "Skipped",
    "Track",
    "diff",
    "history",
]
