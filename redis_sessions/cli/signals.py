"""How what runs in the foreground until somebody asks it to stop is asked."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NoReturn

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(BaseException):
    """Somebody asked to stop. No Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def until_asked_to_stop() -> Iterator[list[int]]:
    """End the block, in order, at Ctrl-C, SIGTERM or SIGHUP; what follows it is run as if it had ended by itself.

    Yields a list that then has the signal's number in it. A signal that is ignored stays so, as nohup wants it.

    Once asked, this process heeds no further one: what is left of its end is not to be cut short either.
    """
    asked: list[int] = []
    before = {number: signal.signal(number, _stop) for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield asked
    except _Stopped as stopped:
        asked.append(stopped.number)
        # Ignored, since Python takes handlers of ours away before it ends.
        _set(dict.fromkeys(_SIGNALS, signal.SIG_IGN))
        return
    except BaseException:
        _set(before)
        raise
    _set(before)


def _set(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    # A second Ctrl-C must not cut short the orderly end that the first one began.
    for other in _SIGNALS:
        signal.signal(other, _stopping)
    raise _Stopped(number)


def _stopping(_number: int, _frame: FrameType | None) -> None:
    pass
