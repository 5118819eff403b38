"""Variables of which most are found when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property

from bnstat.model import Variable


class Later(Mapping[str, Variable]):
    """The variables of a file that has been opened in part.

    A key that is not of that part, and whatever is asked of all keys, opens the rest.
    """

    def __init__(
        self, opened: Mapping[str, Variable], read_all: Callable[[], Mapping[str, Variable]]
    ) -> None:
        """Keep what has been opened.

        Args:
            opened: the variables that are known so far.
            read_all: gives all variables, these among them, in the order of the file.
        """
        self._opened = opened
        self._read_all = read_all

    def search(self, endings: Collection[str]) -> Mapping[str, str]:
        """The variables that are known so far, as `Contents.search` gives them.

        It is for files in which the others have the names of kernels and biases.
        """
        del endings
        return {key: key for key in self._opened}

    def __getitem__(self, key: str) -> Variable:
        found = self._opened.get(key)
        return self._all[key] if found is None else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @cached_property
    def _all(self) -> Mapping[str, Variable]:
        return self._read_all()
