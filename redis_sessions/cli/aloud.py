"""What the store logs as a warning, said on stderr, for a program whose user reads no log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator


class _Aloud(logging.Handler):
    """Says each of them once: that Redis is still away at the next renewal of a lease is no news."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._said:
            self._said.add(text)
            self._say(text)


@contextlib.contextmanager
def warnings_aloud(say: Callable[[str], None]) -> Iterator[None]:
    """Say warnings of the store while the block runs."""
    logger, aloud = logging.getLogger("redis_sessions"), _Aloud(say)
    logger.addHandler(aloud)
    try:
        yield
    finally:
        logger.removeHandler(aloud)
