"""Layers by what people type for their names."""

from __future__ import annotations

from collections.abc import Sequence


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether a name matches one of some globs, such as `block1/*`, or there are none."""
    if not globs:
        return True
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, glob) for glob in globs)


def near_names(typed: str, names: Sequence[str]) -> str:
    """A hint with the names that are the most like what was typed; empty where there are none."""
    from difflib import get_close_matches

    near = get_close_matches(typed, names, n=3, cutoff=0.4) or names[:3]
    return f"near names: {', '.join(near)}" if near else ""
