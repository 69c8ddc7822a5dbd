"""Writes files whole or not at all, readable by their owner only.

A process that is killed meanwhile leaves its draft beside the file, as `.NAME.xxxxxxxx`; nothing reads it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import IO, Final, Self

from redis_sessions.errors import FileNotWritten

_STREAMS: Final = ("stdin", "stdout", "stderr")
_OPEN: Final = re.compile(rf"/dev/({'|'.join(_STREAMS)}|fd/([0-9]{{1,9}}))")


class Replacement:
    """Replaces `path`, with mode 0600, by what is written in the block, if the block ends without an error.

    A symbolic link is kept: its target is replaced. What is not a regular file, such as a pipe, a terminal or /dev/null, is
    kept too, and is written to at the end of the block.

    Raises FileNotWritten.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def __enter__(self) -> Self:
        try:
            self._target = None if _is_stream(self._path) else self._path.resolve()
            if self._target is None:
                self.file: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")
            elif self._target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            else:
                handle, draft = tempfile.mkstemp(dir=self._target.parent, prefix=f".{self._target.name}.")
                self._draft = Path(draft)
                self.file = os.fdopen(handle, "w", encoding="utf-8")
        except (OSError, RuntimeError) as error:  # a link to itself is a RuntimeError in Python 3.11 and 3.12
            raise _not_written(self._path, error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self.file:
                if kind is None and self._target is None:
                    self.file.seek(0)
                    with open(openable(self._path), "w", encoding="utf-8") as stream:  # noqa: PTH123 - may be a number
                        shutil.copyfileobj(self.file, stream)
                elif kind is None:
                    self.file.flush()
                    os.fsync(self.file.fileno())
            if kind is None and self._target is not None:
                self._draft.replace(self._target)
        except OSError as error:
            raise _not_written(self._path, error) from None
        finally:
            if self._target is not None:
                self._draft.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError | RuntimeError) -> FileNotWritten:
    why = error.strerror if isinstance(error, OSError) else "Too many levels of symbolic links"
    return FileNotWritten(f"{path} can't be written ({why})", remedy="name a directory that exists and has room")


def _is_stream(path: Path) -> bool:
    return _OPEN.fullmatch(str(path)) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def openable(path: Path) -> Path | int:
    """What `open` takes for a path: a copy of the descriptor, if the path is a name for one, such as /dev/stdin.

    Opened by name, a regular file behind it would be overwritten from its beginning, and a socket can't be opened.
    """
    if is_open := _OPEN.fullmatch(str(path)):
        return os.dup(int(is_open[2] or _STREAMS.index(is_open[1])))
    return path


def check_writable(path: str | Path) -> None:
    """Raise FileNotWritten if a file can't be written there; changes nothing."""
    Replacement(path).__enter__().__exit__(Exception)


def clear_file(path: str | Path) -> None:
    """Remove what `replace_file` would replace; a link and a stream are kept. Raises FileNotWritten, as that would."""
    check_writable(path)
    if not _is_stream(Path(path)):
        try:
            Path(path).resolve().unlink(missing_ok=True)
        except OSError as error:
            raise _not_written(Path(path), error) from None


def replace_file(path: str | Path, text: str) -> None:
    """Write a whole file. Raises FileNotWritten."""
    with Replacement(path) as replacement:
        replacement.file.write(text)
