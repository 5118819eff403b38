"""A scan: roots in, records out as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from hashlib import blake2b
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Final

from bnstat import __version__
from bnstat.checks import RULES
from bnstat.errors import BnstatError, NotFoundError
from bnstat.formats.locate import locate
from bnstat.scanning.engines import Engine, Here
from bnstat.scanning.job import How, examine_all
from bnstat.scanning.record import Record, of_error
from bnstat.scanning.walk import Candidate, Choice, Unreadable, signature, walk
from bnstat.storage.access import Access
from bnstat.storage.address import scheme_of, shown
from bnstat.storage.files import Folder
from bnstat.storage.find import Spot, find

if TYPE_CHECKING:
    from bnstat.scanning.state import State


_FIRST: Final = 64
_MOST: Final = 4096
"""So many candidates are waited for, at first and at last, before the workers start on them."""

_JOB_SECONDS: Final = 0.1
_LARGEST_JOB: Final = 256
"""A job is as many candidates as take so long, going by those before; at most so many."""


def scan(
    roots: Sequence[str], choice: Choice, how: How, engine: Engine, state: State | None = None
) -> Iterator[Record]:
    """The records of all models below some roots, as they come.

    Args:
        roots: folders, files or checkpoints' prefixes, or URLs of these.
        choice: which models are wanted.
        how: how they are read and checked.
        engine: where that is done.
        state: what is known of earlier scans, and is kept of this one.

    Raises:
        NotFoundError: a root is not there; nothing was scanned.
        BnstatError: a root cannot be listed, the engine is lost, or the state cannot be used.
    """
    size, pace = _FIRST, _Pace()
    changed: list[Candidate] = []
    is_whole = choice == Choice()
    for found in _candidates(roots, choice, how, engine):
        if isinstance(found, Unreadable):
            is_whole = False
            yield of_error(found.path, found.error)
            continue
        known = None if state is None else state.known(found)
        if known is not None:
            yield from known
            continue
        changed.append(found)
        if len(changed) == size:
            yield from _examined(changed, how, engine, state, pace)
            changed = []
            size = min(2 * size, _MOST)
    yield from _examined(changed, how, engine, state, pace)
    if state is not None and is_whole:
        state.forget_others(roots)


@contextmanager
def opened(state: str | None, how: How) -> Iterator[State | None]:
    """What is known of earlier scans, by the name of its file; None without one.

    Raises:
        BnstatError: as `State`.
    """
    if state is None:
        yield None
        return
    from bnstat.scanning.state import State

    with closing(State(state, _told(how))) as known:
        yield known


def _told(how: How) -> str:
    """A text that differs where bnstat, its rules or how they are applied does."""
    rules = [rule.code for rule in RULES]
    text = repr((__version__, rules, how, _architecture(how.reading.get("config"))))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _architecture(path: str | None) -> str:
    """Return a text that differs where the architecture in the file of `--config` does."""
    if path is None:
        return ""
    from bnstat.formats.keras.config import read_architecture

    try:
        return repr(read_architecture(path).layers)
    except BnstatError as error:
        return str(error)


def _candidates(
    roots: Sequence[str], choice: Choice, how: How, engine: Engine
) -> Iterator[Candidate | Unreadable]:
    spots = [(root, find(root, how.access(), whole=True)) for root in roots]
    for root in roots:
        if scheme_of(root) == "memory" and not isinstance(engine, Here):
            raise BnstatError(root, "is in this process alone", "leave out --jobs and --engine")
    folders = [folder for _, spot in spots if (folder := _listable(spot)) is not None]
    alone = [_alone(root, spot, how.access()) for root, spot in spots if _listable(spot) is None]
    yield from walk(folders, choice)
    yield from alone


def _listable(spot: Spot) -> Folder | None:
    """The folder that it is, if that tells what is in it."""
    folder = spot.folder if spot.parent is None else None
    return folder if folder is not None and folder.can_list else None


def _alone(root: str, spot: Spot, access: Access) -> Candidate | Unreadable:
    """A root that is a model itself: a file, or what a checkpoint's files start with.

    Raises:
        NotFoundError: it is not there.
    """
    try:
        locate(root, access)
        if spot.parent is None or not spot.parent.can_list:
            return Candidate(root, "", "")
        parts = [entry for entry in spot.parent.entries() if entry.name.startswith(spot.name)]
    except NotFoundError:
        raise
    except BnstatError as error:
        return Unreadable(shown(root), error)
    known = all(part.tag for part in parts)
    return Candidate(root, "", signature(parts) if known else "")


class _Pace:
    """How fast candidates are examined.

    Attributes:
        job: how many of them are one job.
    """

    def __init__(self) -> None:
        self.job = 8

    def took(self, seconds: float, count: int) -> None:
        """So many candidates took a worker so long."""
        self.job = max(1, min(_LARGEST_JOB, int(_JOB_SECONDS * count / max(seconds, 1e-6))))


def _examined(
    candidates: Sequence[Candidate],
    how: How,
    engine: Engine,
    state: State | None,
    pace: _Pace,
) -> Iterator[Record]:
    for examined in _surviving(candidates, how, engine, pace):
        if state is not None:
            state.keep(examined)
        for _, records in examined:
            yield from records


def _surviving(
    candidates: Sequence[Candidate], how: How, engine: Engine, pace: _Pace
) -> Iterator[list[tuple[Candidate, list[Record]]]]:
    """The records of candidates, batch by batch, though workers may die of some.

    What is lost is tried again, each candidate alone: so all that is sound comes through, and what
    a worker dies of is told apart.
    """
    work = partial(_examine, how)
    start = monotonic()
    size = max(1, min(pace.job, len(candidates) // (4 * engine.workers)))
    rest = iter(candidates)
    batches = list(iter(lambda: list(islice(rest, size)), []))
    lost: list[Candidate] = []
    for number, found in engine.run(work, batches):
        if found is None:
            lost += batches[number]
        else:
            yield list(zip(batches[number], found, strict=True))
    pace.took((monotonic() - start) * engine.workers, len(candidates))
    for candidate in lost:
        ((_, found),) = engine.run(work, [[candidate]])
        yield [(candidate, [_died(candidate)] if found is None else found[0])]


def _died(candidate: Candidate) -> Record:
    reason = "the worker that opened it died, and so did another"
    return Record(shown(candidate.path), trouble="died", reason=reason)


def _examine(how: How, candidates: list[Candidate]) -> list[list[Record]]:
    return examine_all(candidates, how)
