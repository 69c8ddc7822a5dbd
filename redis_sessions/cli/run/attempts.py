"""An agent's command as `resume` runs it: once, or after a refusal a second time with the same input."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from redis_sessions.agents import Agent
from redis_sessions.agents.command_line import with_resume
from redis_sessions.agents.judge import RunObserver
from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.run.process import LINGER_S, Child, NotStarted, Outcome
from redis_sessions.cli.run.streams import InputSpool, OutputBuffer
from redis_sessions.cli.signals import PASSED_ON, TO_STOP, Signals
from redis_sessions.errors import SessionStoreError
from redis_sessions.operations.text import exact_duration
from redis_sessions.resume.turn import Judgement, Turn, TurnStart, Verdict

# As in timeout(1) and shells.
TIMED_OUT: Final = 124
NOT_RUNNABLE: Final = 126
NOT_FOUND: Final = 127
SIGNALLED: Final = 128

_FROM_OUTSIDE: Final = (*TO_STOP, signal.SIGQUIT, signal.SIGKILL)

# Set by an agent for the programs it runs; some refuse to start if it is set.
_NOT_INHERITED: Final = "CLAUDECODE"
# What the agent and its hooks are told of the turn; a `run` within another one has its own.
HOW_VARIABLE: Final = "REDIS_SESSIONS_HOW"
PREVIOUS_VARIABLE: Final = "REDIS_SESSIONS_PREVIOUS_ID"


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
        linger_s: how long a run may go on in silence after its closing record.
        mint: whether a fresh run is given its session ID.
        described: whether the runtime was described by options.
        gone: the regular expression of --gone, to name it in a message.
        save_early: saves the ID of the running turn; whether it did.
        start: how the running turn was started.
        signals: pass on what this process receives.
        exit_code: of the last run.
        timed_out: whether the last run was ended by the time limit.
        unexpected: whether it exited with 0 and is not taken for a success.
        judgement: of the last run that was started; None before.
        context_tokens: size of the session's context after the last run, if known.
        named: what the last successful run named as its session, valid or not.
        saved: the session that was saved while the last run went on; None if none was.
        previous: the session that was to be resumed, or None.
        skipped: whether some of its output was too long to be read whole.
        lost: why some of the output could not be written; None if all was, or nobody reads it any more.
    """

    runtime: Agent
    command: list[str]
    timeout_s: float | None
    verbose: bool
    quiet: bool = False
    linger_s: float = LINGER_S
    mint: bool = False
    described: bool = False
    gone: str | None = None
    save_early: Callable[[str], bool] = lambda _: False
    start: Callable[[], TurnStart | None] = lambda: None
    signals: Signals = field(default_factory=lambda: Signals(PASSED_ON))
    exit_code: int = 0
    timed_out: bool = False
    unexpected: bool = False
    judgement: Judgement | None = None
    context_tokens: int | None = None
    named: str | None = None
    saved: str | None = None
    previous: str | None = None
    skipped: bool = False
    lost: OSError | None = None
    _spool: InputSpool | None = None
    _unspooled: OSError | None = None
    _refused: OutputBuffer | None = None
    _output: OutputBuffer | None = None

    def __call__(self, session_id: str | None) -> Turn[int]:
        """Run the agent on a session, or fresh. Raises AgentFailed."""
        self.signals.check()
        if refused := self.discard():
            self.remark(f"session {self.previous} was refused ({refused}): started fresh")
        self.previous, self.saved = session_id or self.previous, None
        minted = str(uuid.uuid4()) if session_id is None and self.mint else None
        output = self._output = OutputBuffer(hold=session_id is not None)
        observer = self.runtime.observer(session_id or minted, self.command, minted=minted is not None)
        outcome = self._run(self.place(session_id, minted), observer, output, resuming=session_id is not None)
        judgement = self._judge(observer, outcome)
        if self.ephemeral:
            judgement = replace(judgement, session_id=None)
        if output.cut and judgement.verdict is Verdict.other:
            # Whoever reads it has stopped, or the disk is full: nothing of the session's.
            judgement = replace(judgement, cut_short=True)
        if judgement.verdict.refused and not judgement.turn_began and not output.passed and not self._input_lost():
            self._refused = output
        else:
            output.release()
            # Once output was written, or input can't be given again, a run is never repeated.
            judgement = replace(judgement, turn_began=True)
        if judgement.verdict.refused:
            # What was saved of it is dropped.
            self.saved = None
        self.judgement, self.context_tokens, self.lost = judgement, observer.context_tokens, output.lost
        self.skipped = observer.skipped
        if judgement.verdict is Verdict.ok:
            # The store checks whether it is a valid ID, and reports it if not.
            self.named = None if self.ephemeral else observer.named or minted
            gone = session_id is not None and judgement.previous_gone
            if gone:
                self.remark(f"session {session_id} was gone, and {self.runtime.name} started {self.named} without saying so")
            return Turn(self.named, self.exit_code, context_tokens=self.context_tokens, previous_gone=gone)
        undecided = judgement.verdict is Verdict.other and not judgement.cut_short and not judgement.session_id
        if undecided and session_id is not None and outcome.code:
            self.remark(self._what_was_tried(session_id))
        again = "; it is not run again" if judgement.verdict.refused and self._refused is None else ""
        before = f"session {self.previous} was refused; run fresh, " if session_id is None and self.previous else ""
        why = f"{before}the agent {self._ending(outcome, observer, output)}{again}"
        if observer.unstarted and not self.verbose:
            self.remark(why)
        raise AgentFailed(self.exit_code, judgement, why)

    def place(self, session_id: str | None, minted: str | None = None) -> list[str]:
        """The command with the arguments in their place that resume a session, or name a new one, or with none.

        Raises PlaceUnknown in any case.
        """
        words = self.runtime.resume if session_id else self.runtime.mint if minted else ()
        arguments = [word.replace("{id}", session_id or minted or "") for word in words]
        return with_resume(self.command, self.runtime.programs, self.runtime.place, arguments)

    @property
    def has_terminal(self) -> bool:
        """Whether the agent reads from the terminal, which then is its own: Ctrl-C reaches it alone."""
        return sys.stdin is not None and sys.stdin.isatty()

    @property
    def ephemeral(self) -> str | None:
        """The option of the command by which nothing can be resumed later, if it has one."""
        return next((word for word in self.runtime.own_words(self.command) if word in self.runtime.ephemeral), None)

    @property
    def resumes(self) -> bool:
        """Whether the command can resume a session at all."""
        return self.runtime.ephemeral_resumes or not self.ephemeral

    def _judge(self, observer: RunObserver, outcome: Outcome) -> Judgement:
        """Judge a run, and set its exit code."""
        code = outcome.code
        self.timed_out = self.unexpected = False
        self.exit_code = SIGNALLED - code if code < 0 else code
        if not outcome.ended_for and not outcome.signal:
            judgement = observer.judge(code)
            if judgement.verdict is Verdict.other and code == 0 and self.has_terminal:
                # Ctrl-C reached the agent alone, which then ends without a word.
                judgement = replace(judgement, cut_short=True)
            if judgement.verdict is not Verdict.ok and code == 0:
                # A caller must not take it for success.
                self.exit_code, self.unexpected = exits.PARTLY, not judgement.verdict.refused
            # A crash is the agent's own.
            return replace(judgement, cut_short=judgement.cut_short and (code > 0 or -code in _FROM_OUTSIDE))
        if outcome.ended_for == "linger" and not self.quiet:
            after = exact_duration(round(self.linger_s * 1000))
            self.say(f"the agent had ended its turn and did not exit: it was ended after {after} (--linger)")
        # What it said before it was asked to end counts, and what it said then if it exits with 0: it has ended its turn.
        if outcome.closed or (observer.closed == "ok" and code == 0):
            judgement = observer.judge(0 if observer.closed == "ok" else exits.PARTLY)
            self.exit_code = 0 if judgement.verdict is Verdict.ok else exits.PARTLY
            return judgement
        self.timed_out = outcome.ended_for == "timeout"
        if self.timed_out:
            self.exit_code = TIMED_OUT
        elif outcome.signal and code == 0:
            self.exit_code = SIGNALLED + outcome.signal
        judgement = observer.judge(code or exits.PARTLY)
        if judgement.verdict.refused and not self.timed_out:
            return judgement
        return replace(judgement, verdict=Verdict.other, session_id=observer.answered_id, cut_short=True)

    def _ending(self, outcome: Outcome, observer: RunObserver, output: OutputBuffer) -> str:
        assert self.judgement is not None
        if self.timed_out and self.timeout_s is not None:
            return f"was ended after {exact_duration(round(self.timeout_s * 1000))} (--timeout)"
        if observer.unstarted:
            return f"was not started, or not reached: its command ended with {self.exit_code}"
        ended = f"ended with {self.exit_code} ({self.judgement.verdict})"
        if not self.unexpected:
            return ended
        why = "its output says that it failed"
        if self.judgement.verdict is Verdict.other and 1 not in output.seen:
            why = "it printed nothing"
        elif self.judgement.verdict is Verdict.other:
            why = "nothing in its output says that it succeeded"
        return f"{ended} instead of {outcome.code}: {why}"

    def _what_was_tried(self, session_id: str) -> str:
        name = self.runtime.name
        if self.described:
            tried, remedy = (f"--gone {self.gone!r}" if self.gone else "none"), "add its words by --gone REGEX"
        else:
            tried = f"{len(self.runtime.refusals)} patterns of {name}"
            remedy = "add a refusal to the runtime's file: see redis-sessions agents"
        return (
            f"the turn failed, and nothing that was said is known to mean that session {session_id} is gone "
            f"(tried: {tried}); if it is, {remedy}"
        )

    def _save_early(self, observer: RunObserver, session_id: str) -> None:
        try:
            if self.save_early(session_id):
                self.saved = session_id
        except SessionStoreError as error:
            # The end of a turn tries again, and says itself if that fails.
            if not observer.closed:
                self.remark(f"session {session_id} was not saved yet: {error}; the end of the turn tries again")

    def _run(self, command: list[str], observer: RunObserver, output: OutputBuffer, *, resuming: bool) -> Outcome:
        if resuming and self._spool is None and sys.stdin is not None and not self.has_terminal:
            try:
                self._spool = InputSpool(sys.stdin.fileno())
            except OSError as error:
                # The agent still runs, on the input itself.
                self._unspooled = error
        saving: list[threading.Thread] = []

        def answered(session_id: str) -> None:
            # In a thread of its own, so that a server that hangs does not hold back the output.
            if not self.ephemeral:
                saving.append(threading.Thread(target=self._save_early, args=(observer, session_id), daemon=True))
                saving[0].start()

        child = Child(
            command=command,
            environment=self._environment(),
            spool=self._spool,
            observer=observer,
            output=output,
            signals=self.signals,
            deadline_s=None if self.timeout_s is None else time.monotonic() + self.timeout_s,
            linger_s=self.linger_s,
            answered=answered,
        )
        try:
            outcome = child.run()
            for thread in saving:
                thread.join()
            return outcome
        except NotStarted as error:
            self.exit_code = NOT_FOUND if error.missing else NOT_RUNNABLE
            self.say(str(error))
            judgement = self.judgement = Judgement(Verdict.other, cut_short=True)
            raise AgentFailed(self.exit_code, judgement, "the agent was not started") from None

    def _environment(self) -> dict[str, str]:
        """The agent's: this process's own, and how the turn was started."""
        start = self.start()
        told = {HOW_VARIABLE: start and start.how, PREVIOUS_VARIABLE: start and start.previous}
        environment = {name: value for name, value in os.environ.items() if name != _NOT_INHERITED and name not in told}
        return environment | {name: value for name, value in told.items() if value}

    def _input_lost(self) -> bool:
        error = self._unspooled or (self._spool and self._spool.failed)
        if error:
            self.remark(f"standard input could not be kept for a second run ({error.strerror})")
        return bool(error)

    def say(self, message: str) -> None:
        """Say something on stderr, on a line of its own."""
        if self._output is not None:
            self._output.end_line()
        show.complain(message)

    def remark(self, message: str) -> None:
        """Say something that --quiet leaves out."""
        if not self.quiet:
            self.say(message)

    def discard(self) -> Verdict | None:
        """Forget what a refused attempt printed, which `verbose` shows on stderr; how it was refused, if one was."""
        refused, self._refused = self._refused, None
        if refused is None or self.judgement is None:
            return None
        output = refused.discard()
        for line in output.decode("utf-8", "replace").splitlines() if self.verbose else ():
            self.say(f"refused attempt: {line}")
        return self.judgement.verdict
