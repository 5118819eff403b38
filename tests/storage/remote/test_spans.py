"""Which bytes are fetched in one piece."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bnstat.storage.remote.store import Fetched, Span, bridged, split, union

SPANS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)))


def covered(spans: list[Span]) -> set[int]:
    return {at for start, end in spans for at in range(start, end)}


@given(SPANS)
def test_a_union_has_the_same_bytes_and_no_spans_that_touch(spans: list[Span]) -> None:
    merged = union(spans)
    assert covered(merged) == covered(spans)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(merged))


@given(SPANS, st.integers(0, 100))
def test_bridges_waste_no_more_than_they_may(spans: list[Span], waste: int) -> None:
    merged = union(spans)
    joined = bridged(merged, waste)
    assert covered(joined) >= covered(merged)
    assert len(covered(joined) - covered(merged)) <= waste
    gaps = sorted(other[0] - one[1] for one, other in itertools.pairwise(joined))
    assert not gaps or gaps[0] + len(covered(joined) - covered(merged)) > waste


def test_the_smallest_gaps_are_bridged_while_they_may() -> None:
    spans = [(0, 1), (6, 7), (11, 12), (30, 31)]
    assert bridged(spans, 8) == [(0, 1), (6, 12), (30, 31)]
    assert bridged(spans, 9) == [(0, 12), (30, 31)]
    assert bridged(spans, 3) == spans


def test_a_wide_gap_is_worth_a_request() -> None:
    kibi = 1 << 10
    spans = [(0, 1), (48 * kibi, 48 * kibi + 1), (100 * kibi, 100 * kibi + 1)]
    assert bridged(spans, 1 << 20) == [(0, 48 * kibi + 1), spans[2]]


def test_long_spans_are_fetched_in_parts() -> None:
    mebi = 1 << 20
    assert split([(0, 5), (mebi, 20 * mebi)]) == [
        (0, 5),
        (mebi, 9 * mebi),
        (9 * mebi, 17 * mebi),
        (17 * mebi, 20 * mebi),
    ]


@given(st.lists(SPANS))
def test_pieces_give_back_what_was_fetched(steps: list[list[Span]]) -> None:
    content = bytes(number % 251 for number in range(200))
    pieces = Fetched()
    held: set[int] = set()
    for spans in steps:
        lacking = pieces.missing(spans)
        assert covered(lacking) == covered(spans) - held
        for start, end in lacking:
            pieces.add(start, content[start:end])
        held |= covered(spans)
        for start, end in union(spans):
            assert pieces.get(start, end) == content[start:end]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1))
def test_what_several_threads_fetched_may_overlap(spans: list[Span]) -> None:
    """Two threads that lack the same bytes both fetch them, each with others around them."""
    content = bytes(range(120))
    pieces = Fetched()
    for start, length in spans:
        pieces.add(start, content[start : start + length])
    held = [(start, start + length) for start, length in spans]
    assert not pieces.missing(held)
    for start, end in union(held):
        for at in range(start, end):
            assert pieces.get(at, end) == content[at:end]
