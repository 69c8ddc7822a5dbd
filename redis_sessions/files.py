"""Files put in place whole or not at all, for their owner alone.

A process that is killed meanwhile leaves its draft beside the file, as `.NAME.xxxxxxxx`; nothing ever reads it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO, Self

from redis_sessions.errors import FileNotWritten


class Replacement:
    """A file that takes the place of `path`, with mode 0600, when the block ends well; else nothing is left of it.

    Raises FileNotWritten.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def __enter__(self) -> Self:
        try:
            handle, draft = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        except OSError as error:
            raise self._failure(error) from None
        self._draft = Path(draft)
        self.file: IO[str] = os.fdopen(handle, "w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self.file:
                if kind is None:
                    self.file.flush()
                    os.fsync(self.file.fileno())
            if kind is None:
                self._draft.replace(self._path)
        except OSError as error:
            raise self._failure(error) from None
        finally:
            self._draft.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> FileNotWritten:
        return FileNotWritten(
            f"{self._path} can't be written ({error.strerror})", remedy="name a place that is there and has room"
        )


def replace_file(path: str | Path, text: str) -> None:
    """Write a whole file. Raises FileNotWritten."""
    with Replacement(path) as replacement:
        replacement.file.write(text)
