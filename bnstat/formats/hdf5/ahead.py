"""Fetching the objects of an HDF5 file that is far away, in a few trips.

One object leads to the next, so that a walk through a file makes a trip for each. Here all objects
that can be reached with what is there are looked at; what they lack is fetched in one go; and so
on, until nothing is lacking. The number of trips is that of the tree's levels, not of its objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from bnstat.errors import BnstatError
from bnstat.formats.hdf5.objects import AbsentError, Objects

_T = TypeVar("_T")

_WINDOW: Final = 12 << 10
"""So much is fetched after a place: an object's parts, and its members, mostly follow it."""

_BEFORE: Final = 1 << 10
"""So much is fetched before it: there the parts of another may end that follow a large array."""

_MOST_TRIPS: Final = 200


def fetch_ahead(
    objects: Objects, root: tuple[int, _T], visit: Callable[[int, _T], Iterable[tuple[int, _T]]]
) -> None:
    """Fetch all that `visit` reads, for an object and those that it leads to.

    Args:
        objects: the file's objects.
        root: the header of the first, and what else `visit` is to know of it.
        visit: reads an object by its header, and gives the same of others. What is damaged
            tells so when it is read in earnest.
    """
    seen = {root[0]}
    waiting = [root]
    for _ in range(_MOST_TRIPS):
        lacking: list[tuple[int, _T]] = []
        spans: list[tuple[int, int]] = []
        while waiting:
            place = waiting.pop()
            try:
                with objects.no_trips():
                    found = list(visit(*place))
            except AbsentError as absent:
                lacking.append(place)
                spans += absent.spans
            except BnstatError:
                continue
            else:
                fresh = [child for child in dict(found).items() if child[0] not in seen]
                seen.update(header for header, _ in fresh)
                waiting += fresh
        if not lacking:
            return
        objects.fetch(
            (max(0, address - _BEFORE), _BEFORE + length + _WINDOW) for address, length in spans
        )
        waiting = lacking
