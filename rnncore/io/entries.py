"""Arrays of a file by their names, each read when it is looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from rnncore.typing import Host


class Entries(Mapping[str, Host]):
    """A mapping of names to arrays that are read one by one, as a network may be a small part of a file.

    Attributes
    ----------
    bfloat16 : frozenset of str
        The names of the arrays that are bfloat16 in the file, and float32 here.
    """

    def __init__(self, readers: Mapping[str, Callable[[], Host]], bfloat16: frozenset[str] = frozenset()) -> None:
        self._readers = readers
        self.bfloat16 = bfloat16

    def __getitem__(self, name: str) -> Host:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)
