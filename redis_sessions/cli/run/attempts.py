"""An agent's command as `resume` runs it: once, or after a refusal a second time with the same input."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Final

from redis_sessions.agents import Agent
from redis_sessions.agents.command_line import with_resume
from redis_sessions.agents.judge import RunObserver
from redis_sessions.cli import output as show
from redis_sessions.cli.run.process import Child, NotStarted
from redis_sessions.cli.run.streams import InputSpool, OutputBuffer
from redis_sessions.cli.signals import PASSED_ON, Signals
from redis_sessions.resume.turn import Judgement, Turn, Verdict
from redis_sessions.text import exact_duration

# As in timeout(1) and shells.
TIMED_OUT: Final = 124
NOT_RUNNABLE: Final = 126
NOT_FOUND: Final = 127
SIGNALLED: Final = 128

# Set by an agent for the programs it runs; some refuse to start if it is set.
_NOT_INHERITED: Final = "CLAUDECODE"


class AgentFailed(Exception):
    """A run that did not succeed, or could not be started.

    Attributes:
        exit_code: to exit with.
        judgement: of the run.
    """

    def __init__(self, exit_code: int, judgement: Judgement, why: str) -> None:
        self.exit_code = exit_code
        self.judgement = judgement
        super().__init__(why)


def judge(error: Exception) -> Judgement:
    """The judge of these runs."""
    return error.judgement if isinstance(error, AgentFailed) else Judgement(Verdict.other)


@dataclass(kw_only=True)
class Attempts:
    """The `run` of a resume: a call starts the agent and waits until it ends.

    Attributes:
        runtime: describes the agent.
        command: as given, with `{resume}` in it or not.
        timeout_s: how long one run may take; None for no limit.
        verbose: whether a refused attempt's output is shown on stderr.
        quiet: whether to report only failures.
        signals: pass on what this process receives.
        exit_code: of the last run.
        timed_out: whether the last run was ended by the time limit.
        named: what the last successful run named as its session, valid or not.
        previous: the session that was to be resumed, or None.
        lost: why some of the output could not be written; None if all was, or nobody reads it any more.
    """

    runtime: Agent
    command: list[str]
    timeout_s: float | None
    verbose: bool
    quiet: bool = False
    signals: Signals = field(default_factory=lambda: Signals(PASSED_ON))
    exit_code: int = 0
    timed_out: bool = False
    named: str | None = None
    previous: str | None = None
    lost: OSError | None = None
    _spool: InputSpool | None = None
    _unspooled: OSError | None = None
    _refused: OutputBuffer | None = None
    _output: OutputBuffer | None = None

    def __call__(self, session_id: str | None) -> Turn[int]:
        """Run the agent on a session, or fresh. Raises AgentFailed."""
        self.signals.check()
        self.discard()
        self.previous = session_id or self.previous
        output = self._output = OutputBuffer(hold=session_id is not None)
        observer = RunObserver(self.runtime, session_id)
        code, self.timed_out = self._run(self.place(session_id), observer, output, resuming=session_id is not None)
        judgement = observer.judge(code)
        self.exit_code = TIMED_OUT if self.timed_out else SIGNALLED - code if code < 0 else code
        if self.timed_out:
            judgement = Judgement(Verdict.other, None, judgement.turn_began)
        if judgement.verdict.refused and not judgement.turn_began and not output.passed and not self._input_lost():
            self._refused = output
        else:
            output.release()
            # Once output was written, or input can't be given again, a run is never repeated.
            judgement = replace(judgement, turn_began=True)
        self.lost = output.lost
        if judgement.verdict is Verdict.ok:
            # The store checks whether it is a valid ID, and reports it if not.
            self.named = observer.named
            return Turn(self.named, self.exit_code)
        ended = f"ended with {self.exit_code} ({judgement.verdict})"
        if self.timed_out and self.timeout_s is not None:
            ended = f"was ended after {exact_duration(round(self.timeout_s * 1000))} (--timeout)"
        again = "; it is not run again" if judgement.verdict.refused and self._refused is None else ""
        before = f"session {self.previous} was refused; run fresh, " if session_id is None and self.previous else ""
        raise AgentFailed(self.exit_code, judgement, f"{before}the agent {ended}{again}")

    def place(self, session_id: str | None) -> list[str]:
        """The command with the resume argument in its place, or without one. Raises PlaceUnknown in either case."""
        arguments = [] if session_id is None else [word.replace("{id}", session_id) for word in self.runtime.resume]
        return with_resume(self.command, self.runtime.programs, self.runtime.place, arguments)

    def _run(self, command: list[str], observer: RunObserver, output: OutputBuffer, *, resuming: bool) -> tuple[int, bool]:
        if resuming and self._spool is None and sys.stdin is not None and not sys.stdin.isatty():
            try:
                self._spool = InputSpool(sys.stdin.fileno())
            except OSError as error:
                # The agent still runs, on the input itself.
                self._unspooled = error
        child = Child(
            command=command,
            environment={name: value for name, value in os.environ.items() if name != _NOT_INHERITED},
            spool=self._spool,
            observer=observer,
            output=output,
            signals=self.signals,
            deadline_s=None if self.timeout_s is None else time.monotonic() + self.timeout_s,
        )
        try:
            return child.run()
        except NotStarted as error:
            self.exit_code = NOT_FOUND if error.missing else NOT_RUNNABLE
            self.say(str(error))
            raise AgentFailed(self.exit_code, Judgement(Verdict.other), "the agent was not started") from None

    def _input_lost(self) -> bool:
        error = self._unspooled or (self._spool and self._spool.failed)
        if error and not self.quiet:
            self.say(f"standard input could not be kept for a second run ({error.strerror})")
        return bool(error)

    def say(self, message: str) -> None:
        """Say something on stderr, on a line of its own."""
        if self._output is not None:
            self._output.end_line()
        show.complain(message)

    def discard(self) -> None:
        """Forget what a refused attempt printed; `verbose` shows it on stderr."""
        refused, self._refused = self._refused, None
        if refused is not None:
            output = refused.discard()
            for line in output.decode("utf-8", "replace").splitlines() if self.verbose else ():
                self.say(f"refused attempt: {line}")
