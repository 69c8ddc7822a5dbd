"""Signals that ask this program to stop: raised, kept for later, or passed on to an agent's process group."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Final

TO_STOP: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TO_THE_AGENT: Final = (signal.SIGUSR1, signal.SIGUSR2)
# Every signal that an agent has to receive when this process does.
PASSED_ON: Final = (*TO_STOP, signal.SIGQUIT, *_TO_THE_AGENT)


class Stopped(BaseException):
    """A signal asked this program to stop. Not an Exception, so that nothing handles it as a failure."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)
        self.exit_code = 128 + number  # as in shells
        super().__init__(number)


class Signals:
    """What signals do while they are `installed`: the first that asks to stop raises Stopped, unless they are `held`.

    Later ones are only noted, so that they don't interrupt the cleanup.
    """

    def __init__(self, numbers: tuple[signal.Signals, ...] = TO_STOP) -> None:
        self._numbers = numbers
        self.stopped_by: int | None = None  # the last signal that has asked to stop
        self._held: list[int] | None = None
        self._receiver: Callable[[int], None] | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals for a block, except those that are ignored already, as SIGHUP is under nohup.

        If the block ends by Stopped they are ignored from then on: the rest of the program must not be interrupted either,
        and Python restores its own handlers before it ends.
        """
        before = {number: signal.getsignal(number) for number in self._numbers}
        after = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        for number in after:
            signal.signal(number, self._receive)
        try:
            yield
        except Stopped:
            after = dict.fromkeys(after, signal.SIG_IGN)
            raise
        finally:
            for number, handler in after.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[Callable[[int], None]], None]]:
        """Keep signals from now on, also after the block, instead of raising Stopped.

        Within the block, they are passed on to the receiver that is given to what it yields, those kept so far too.
        """
        held = self._held = self._held or []

        def pass_to(receiver: Callable[[int], None]) -> None:
            self._receiver = receiver
            while held:
                receiver(held.pop(0))

        try:
            yield pass_to
        finally:
            self._receiver = None

    def check(self) -> None:
        """Raise Stopped if a signal has asked to stop, wherever it was passed on to."""
        if self.stopped_by is not None:
            raise Stopped(self.stopped_by)

    def _receive(self, number: int, _frame: object) -> None:
        first = self.stopped_by is None
        if number not in _TO_THE_AGENT:
            self.stopped_by = number
        if self._receiver is not None:
            self._receiver(number)
        elif self._held is not None:
            self._held.append(number)
        elif first:
            self.check()


@contextlib.contextmanager
def until_asked_to_stop() -> Iterator[Signals]:
    """Run a block until a signal asks to stop, then continue after it, as if it had ended normally.

    A loop in the block should `check` what this yields: what a signal raises is lost where Python ignores exceptions, such
    as in callbacks of the garbage collector.
    """
    signals = Signals()
    with contextlib.suppress(Stopped), signals.installed():
        yield signals


def send(group: int, number: int) -> None:
    """Send a signal to a process group, if any process is left in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
