"""How what runs until it is told to stop is told: by Ctrl-C, SIGTERM or SIGHUP, once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Somebody asked to stop. No Exception, so that nothing on the way takes it for a failure."""


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let the first of these signals raise Stopped in the block, and the rest do nothing."""
    before = {number: signal.signal(number, _stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    # A second Ctrl-C must not cut short the orderly end that the first one began.
    for number in _SIGNALS:
        signal.signal(number, _stopping)
    raise Stopped


def _stopping(_number: int, _frame: FrameType | None) -> None:
    pass
