"""Rows put aside until all are there, sorted and each key once: on disk, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Self, TypeAlias

# Conversation key, session ID, time of last use, idle time.
Row: TypeAlias = tuple[str, str, int, int | None]

_CACHE_KIB: Final = 16_384


class Shelf:
    """Use it in a `with`. Its file has no name and mode 0600: it is gone with this process, however that ends."""

    def __enter__(self) -> Self:
        import sqlite3  # noqa: PLC0415 - takes a tenth of this package's import, and only export needs it

        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{_CACHE_KIB};"
            "CREATE TABLE row (key TEXT, session_id TEXT, used_at_ms INTEGER, idle_ms INTEGER);"
            "BEGIN"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def put(self, rows: Iterable[Row]) -> None:
        """Add rows; of those with the same key the last one stays."""
        self._database.executemany("INSERT INTO row VALUES (?, ?, ?, ?)", rows)

    def __iter__(self) -> Iterator[Row]:
        # Sorting once at the end takes half the time of a table that is kept sorted.
        before = None
        for row in self._database.execute("SELECT * FROM row ORDER BY key, rowid DESC"):
            if row[0] != before:
                before = row[0]
                yield row
