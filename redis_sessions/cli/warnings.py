"""What the store logs as a warning, said on stderr, for a program whose user reads no log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator


class _Aloud(logging.Handler):
    def __init__(self, say: Callable[[str], None], *, once: bool) -> None:
        super().__init__(logging.WARNING)
        self._say, self._once = say, once
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not (self._once and text in self._said):
            self._said.add(text)
            self._say(text)


@contextlib.contextmanager
def warnings_aloud(say: Callable[[str], None], *, once: bool = False) -> Iterator[None]:
    """Say warnings of the store while the block runs; `once`: that Redis is still away at the next renewal is no news."""
    logger, aloud = logging.getLogger("redis_sessions"), _Aloud(say, once=once)
    logger.addHandler(aloud)
    try:
        yield
    finally:
        logger.removeHandler(aloud)
