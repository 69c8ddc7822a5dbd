"""How an agent's run is judged: by its records first, then by its stderr, never by what an assistant or a tool said.

1. A run failed if its exit code is neither 0 nor unknown, or the last closing record on stdout says so (or, for a runtime
   that fails with 0 and no record, a line of text). Where JSON was asked for, or is not an option, records count wherever
   they stand, and where it was not, none does; if that is not known, all is text once stdout has begun with text.
2. A run that succeeded is ok; its session ID is the one that its closing record (or, in text mode, a line) names. A run that
   says nothing, or no record where JSON was asked for, did not succeed. One whose records began a turn and did not end it
   was cut short, whatever its exit code. Neither is known of a run whose output was too long to be read whole.
3. Of a run that failed, the closing record's own words decide, if they match a refusal from their first character.
4. Otherwise, and only if nothing had been said yet, the lines of stderr decide, matched the same way, if all that match
   mean the same. Only trouble with the provider, which drops no session, is also read in the last lines of a run.
5. A refusal that names another session than the requested one does not count. What is left undecided is `other`.

The session of a run that failed is given once the model has answered in it: before that it may not exist.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from redis_sessions.agents.launchers import Launch
from redis_sessions.agents.output import Reader, Record, compiled, matches, pick, size
from redis_sessions.resume.turn import Judgement, Verdict

if TYPE_CHECKING:
    from redis_sessions.agents.agent import Agent, Refusal

# Exit codes of a run that was ended from outside: by timeout(1), or in a shell by SIGHUP, SIGINT, SIGKILL or SIGTERM.
TIMED_OUT: Final = 124
_ENDED: Final = frozenset({TIMED_OUT, 129, 130, 137, 143})
# Codex writes how many tokens it used after its last error.
_LAST_LINES: Final = 4
_DIRECT: Final = Launch()


class _End(NamedTuple):
    """What a closing record said: whether the run failed, and in which words."""

    failed: bool
    words: tuple[str, ...] = ()


class RunObserver:
    """Follows one run by its output, in pieces as they come; memory is bounded.

    Attributes:
        turn_began: whether the agent has begun to work on the turn.
        answered: whether the model has answered.
        closed: "ok" or "failed" once a closing record has said so, after which only the process's end is to come.
        unstarted: after `judge`, whether its launchers say that they could not start the agent, and nothing of its own came.
        named: after `judge`, what a run that succeeded named as its session, whether or not it can be an ID of this runtime.
    """

    def __init__(
        self,
        agent: Agent,
        requested: str | None = None,
        *,
        json: bool | None = None,
        keeps_id: bool | None = None,
        quoted: int = 0,
        launch: Launch = _DIRECT,
    ) -> None:
        """Observe a run.

        Args:
            agent: the runtime.
            requested: the session that it is to resume.
            json: whether the command asks for JSON, as `agent.wants_json` says; None if that is not known.
            keeps_id: whether a resumed session keeps its ID in this command; default: as the runtime does.
            quoted: how many lines of its prompt are like those that show an answer: the agent may repeat them.
            launch: what its launchers may say; default: it has none.
        """
        self.turn_began = self.answered = self.unstarted = False
        self.closed: Literal["ok", "failed"] | None = None
        self.named: str | None = None
        self._agent = agent
        self._requested = requested
        self._json = json if agent.session_id_at or agent.turn_ended or not json else None
        self._launch = launch
        self._keeps_id = agent.keeps_id if keeps_id is None else keeps_id
        self._quoted = quoted
        self._stdout = Reader(records=json is not False)
        # Where every record counts, those on stderr would, too, and they may be any log's.
        self._stderr = Reader(records=json is not False and {} not in (*agent.turn_began, *agent.turn_ended))
        # A description that names no option for JSON is of a runtime that always prints it, whatever else it prints.
        self._anywhere = self._json or (self._json is None and agent.json_output is None and bool(agent.session_id_at))
        self._text = False
        self._session_id: str | None = None
        self._line_session_id: str | None = None
        self._records = False
        self._ignore_stderr = False
        self._unclosed = False
        self._end: _End | None = None
        self._stderr_end: _End | None = None
        self._closed_by_unfinished = False
        self._undone_by_nothing = False
        self._failed_by_line = self._failed_to_launch = False
        self._refused_by_line: set[Refusal] = set()
        self._refused_on_stdout: set[Refusal] = set()
        self._last_line = ""
        self._last_stderr_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._contexts: dict[int, int] = {}

    @property
    def answered_id(self) -> str | None:
        """The session's ID once the model has answered in it, also while the run goes on; None before that."""
        resumed = self._requested if self._keeps_id else None
        session_id = self._session_id or self._line_session_id or resumed
        return session_id if self.answered and session_id and self._agent.can_be(session_id) else None

    @property
    def skipped(self) -> bool:
        """Whether any of its output was too long to be read whole: then what is not there may have been."""
        return self._stdout.skipped

    @property
    def _spoke_text(self) -> bool:
        """Whether the agent itself has printed anything in text mode."""
        return self._json is False and self._launch.quiet and self._stdout.spoke

    @property
    def taken(self) -> bool:
        """Whether the session was certainly not refused: from then on nothing is run again."""
        silent = self._agent.silent_refusal
        quiet_in_text = silent is True or (isinstance(silent, tuple) and "text" in silent)
        return self.turn_began or self.answered or (self._spoke_text and quiet_in_text)

    @property
    def context_tokens(self) -> int | None:
        """The size of the session's context as the records say it, in tokens; None if they don't."""
        return self._contexts[min(self._contexts)] if self._contexts else None

    def stdout(self, piece: bytes) -> None:
        """Take a further piece of standard output."""
        if self._closed_by_unfinished:
            self.closed, self._closed_by_unfinished = None, False
        self._take_stdout(self._stdout.feed(piece))
        self.answered |= self._agent.answer_on_stdout and self._spoke_text
        if self.closed is None and (self._anywhere or not self._text):
            # An agent that hangs may never end the line of its closing record.
            for record in self._stdout.unfinished():
                self.closed = self._closing(record)
                self._closed_by_unfinished = self.closed is not None

    def stderr(self, piece: bytes) -> None:
        """Take a further piece of standard error."""
        self._take_stderr(self._stderr.feed(piece))

    def judge(self, exit_code: int | None) -> Judgement:
        """Judge the run, now that it has ended."""
        self._take_stdout(self._stdout.close())
        self._take_stderr(self._stderr.close())
        # With exit code 0, an error on stderr may come from any log.
        end = self._end or (None if exit_code == 0 else self._stderr_end)
        failed = exit_code not in (0, None) and not self._undone_by_nothing
        if failed or self._failed_by_line or (end and end.failed):
            verdict, within_turn = self._refusal()
        elif (exit_code is None and end is None) or ((self._unclosed or self._silent()) and not self.skipped):
            verdict, within_turn = Verdict.other, False
        else:
            return self._succeeded(end)
        ended = exit_code is not None and (exit_code < 0 or exit_code in _ENDED)
        self.unstarted = verdict is Verdict.other and failed and self._says_unstarted(exit_code)
        cut_short = verdict is Verdict.other and (ended or self.unstarted)
        return Judgement(verdict, self.answered_id, self.turn_began or within_turn, cut_short)

    def _succeeded(self, end: _End | None) -> Judgement:
        self.named = self._session_id if end else None if self._records else self._line_session_id
        if self.named is None or not self._agent.can_be(self.named):
            return Judgement(Verdict.ok, None, self.turn_began)
        another = self._requested is not None and self.named.lower() != self._requested.lower()
        return Judgement(Verdict.ok, self.named, self.turn_began, previous_gone=another and self._keeps_id)

    def _says_unstarted(self, exit_code: int | None) -> bool:
        spoke = self._json is not True and self._launch.quiet and self._stdout.spoke
        came = spoke or self.turn_began or self.answered or self._records
        return not came and (exit_code in self._launch.codes or self._failed_to_launch)

    def _silent(self) -> bool:
        if self._json:
            return self._end is None if self._agent.turn_ended else not self._records
        if self._json is False:
            return not (self._stdout.spoke or self.answered)
        return not (self._stdout.spoke or self._stderr.spoke)

    def _take_stdout(self, items: Iterable[Record | str]) -> None:
        for item in items:
            if isinstance(item, str):
                if item:
                    self._text = self._text or not self._records
                    self._stdout_line(item)
            elif self._anywhere or not self._text:
                self._end = self._record(item, self._end, names=True)
                self._progress(item)

    def _take_stderr(self, items: Iterable[Record | str]) -> None:
        for item in items:
            if isinstance(item, dict):
                if self._stderr.line and not self._ignore_stderr:
                    self._refused_by_line |= self._refusals(self._stderr.line)
                # What it names there may be of any log.
                self._stderr_end = self._record(item, self._stderr_end, names=False)
            elif item:
                self._line(item)

    def _record(self, record: Record, end: _End | None, *, names: bool) -> _End | None:
        """Take a record; returns how the run has ended by it, else by those before it."""
        agent = self._agent
        if end and not end.failed and not self._unclosed and _any(record, agent.spurious_failures):
            self._undone_by_nothing = True
            return end
        for place in agent.session_id_at if names else ():
            if matches(record, place.record):
                self._session_id = next(pick(record, place.path), self._session_id)
                self._records = True
        if _any(record, agent.turn_began):
            self.turn_began = self._unclosed = self._records = True
            self._undone_by_nothing = False
        if _any(record, agent.ignore_stderr_after or agent.turn_began):
            self._ignore_stderr = True
        if not _any(record, agent.turn_ended):
            return end
        self._unclosed, self._records = False, True
        if not _any(record, agent.turn_failed):
            return _End(failed=False)
        words = [word for path in agent.error_paths for word in pick(record, path, numbers=True)]
        # The last record of a failed run may leave it to the one before to say why.
        return _End(failed=True, words=tuple(words) or (end.words if end else ()))

    def _progress(self, record: Record) -> None:
        """Note how far the turn is by a record of stdout."""
        agent = self._agent
        if self.closed == "ok" and _any(record, agent.spurious_failures):
            return
        answered = _any(record, agent.answered)
        self.answered |= answered and not _any(record, agent.answered_unless)
        for rank, context in enumerate(agent.context_tokens_at):
            if matches(record, context.record) and (tokens := size(record, context.paths)):
                self._contexts[rank] = tokens
        if closed := self._closing(record):
            self.closed = closed
            self.answered |= closed == "ok"
        elif answered or _any(record, agent.turn_began):
            self.closed = None

    def _closing(self, record: Record) -> Literal["ok", "failed"] | None:
        """How a record says that the turn has ended, if it is the last."""
        # A description whose every record ends a turn knows of none that is the last.
        if not _any(record, filter(None, self._agent.turn_closed or self._agent.turn_ended)):
            return None
        return "failed" if _any(record, self._agent.turn_failed) else "ok"

    def _stdout_line(self, line: str) -> None:
        agent = self._agent
        self._last_line = line
        self._take_session_id(agent.session_id_stdout_line, line)
        if agent.failed_stdout_line and compiled(agent.failed_stdout_line).match(line):
            self._failed_by_line = True
            self._refused_on_stdout |= self._refusals(line)

    def _line(self, line: str) -> None:
        agent = self._agent
        self._last_stderr_lines.append(line)
        self._failed_to_launch |= any(compiled(pattern).match(line) for pattern in self._launch.lines)
        if not self._ignore_stderr:
            self._refused_by_line |= self._refusals(line)
            if agent.turn_failed_line and compiled(agent.turn_failed_line).match(line):
                self._failed_by_line = True
        self._take_session_id(agent.session_id_line, line)
        if agent.answered_line and self._json is not True and compiled(agent.answered_line).match(line):
            self.answered |= self._quoted == 0
            self._quoted = max(0, self._quoted - 1)
        if agent.turn_began_line and compiled(agent.turn_began_line).match(line):
            self.turn_began = self._ignore_stderr = True

    def _take_session_id(self, pattern: str | None, line: str) -> None:
        if pattern and not self._line_session_id and (found := compiled(pattern).match(line)):
            self._line_session_id = found["id"]

    def _refusals(self, text: str) -> set[Refusal]:
        return {each for each in self._agent.refusals if each.says(text, self._requested)}

    def _refusal(self) -> tuple[Verdict, bool]:
        """What the run says by which it failed, and whether that comes from within a turn."""
        words = [word for end in (self._end, self._stderr_end) if end and end.failed for word in end.words]
        said = self._refused_on_stdout.union(*map(self._refusals, words))
        said = {each for each in said if each.within_turn or not self.turn_began}
        if not said and not self._ignore_stderr:
            said = self._refused_by_line
        if not said:
            last = [*self._last_stderr_lines, *([] if self._records else [self._last_line])]
            said = {each for line in last for each in self._refusals(line) if each.verdict is Verdict.unavailable}
        verdicts = {each.verdict for each in said}
        decided = verdicts.pop() if len(verdicts) == 1 else Verdict.other
        return decided, decided is not Verdict.other and any(each.within_turn for each in said)


def _any(record: Record, wanted: Iterable[Record]) -> bool:
    return any(matches(record, each) for each in wanted)
