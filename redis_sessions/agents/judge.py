"""How an agent's run is judged: by its records first, then by its stderr, never by what an assistant or a tool said.

1. A run failed if its exit code is neither 0 nor unknown, or the last closing record on stdout says so (or, for a runtime
   that fails with 0 and no record, a line of stderr). If stdout has begun with text, what looks like a record in it is also
   text.
2. A run that succeeded is ok; its session ID is the one that its closing record (or, in text mode, a line of stderr) names.
   A run whose records began a turn and did not end it was cut short, whatever its exit code.
3. Of a run that failed, the closing record's own words decide, if they match a refusal from their first character.
4. Otherwise, and only if nothing had been said yet, the lines of stderr decide, matched the same way, if all that match
   mean the same.
5. A refusal that names another session than the requested one does not count. What is left undecided is `other`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from redis_sessions.agents.output import Reader, Record, compiled, matches, pick
from redis_sessions.resume.turn import Judgement, Verdict

if TYPE_CHECKING:
    from redis_sessions.agents.agent import Agent


class _End(NamedTuple):
    """What a closing record said: whether the run failed, and in which words."""

    failed: bool
    words: tuple[str, ...] = ()


class RunObserver:
    """Follows one run by its output, in pieces as they come; memory is bounded.

    Attributes:
        turn_began: whether the agent has begun to work on the turn.
        named: after `judge`, what a run that succeeded named as its session, whether or not it can be an ID of this runtime.
    """

    def __init__(self, agent: Agent, requested: str | None = None) -> None:
        self.turn_began = False
        self.named: str | None = None
        self._agent = agent
        self._requested = requested
        self._stdout, self._stderr = Reader(), Reader()
        self._text = False
        self._session_id: str | None = None
        self._line_session_id: str | None = None
        self._records = False
        self._ignore_stderr = False
        self._unclosed = False
        self._end: _End | None = None
        self._stderr_end: _End | None = None
        self._failed_by_line = False
        self._refused_by_line: set[Verdict] = set()

    def stdout(self, piece: bytes) -> None:
        """Take a further piece of standard output."""
        self._take_stdout(self._stdout.feed(piece))

    def stderr(self, piece: bytes) -> None:
        """Take a further piece of standard error."""
        self._take_stderr(self._stderr.feed(piece))

    def judge(self, exit_code: int | None) -> Judgement:
        """Judge the run, now that it has ended."""
        self._take_stdout(self._stdout.close())
        self._take_stderr(self._stderr.close())
        # With exit code 0, an error on stderr may come from any log.
        end = self._end or (None if exit_code == 0 else self._stderr_end)
        if exit_code not in (0, None) or self._failed_by_line or (end and end.failed):
            return Judgement(self._refusal(), None, self.turn_began)
        if self._unclosed or (exit_code is None and end is None):
            return Judgement(Verdict.other, None, self.turn_began)
        self.named = self._session_id if end else None if self._records else self._line_session_id
        can_be = self.named is not None and self._agent.can_be(self.named)
        return Judgement(Verdict.ok, self.named if can_be else None, self.turn_began)

    def _take_stdout(self, items: Iterable[Record | str]) -> None:
        for item in items:
            if isinstance(item, str):
                self._text = self._text or (bool(item) and not self._records)
            elif not self._text:
                self._end = self._record(item, self._end)

    def _take_stderr(self, items: Iterable[Record | str]) -> None:
        for item in items:
            if isinstance(item, dict):
                self._stderr_end = self._record(item, self._stderr_end)
            elif item:
                self._line(item)

    def _record(self, record: Record, end: _End | None) -> _End | None:
        """Take a record; returns how the run has ended by it, else by those before it."""
        agent = self._agent
        for place in agent.session_id_at:
            if matches(record, place.record):
                self._session_id = next(pick(record, place.path), self._session_id)
                self._records = True
        if any(matches(record, wanted) for wanted in agent.turn_began):
            self.turn_began = self._unclosed = self._records = True
        if any(matches(record, wanted) for wanted in agent.ignore_stderr_after or agent.turn_began):
            self._ignore_stderr = True
        if not any(matches(record, wanted) for wanted in agent.turn_ended):
            return end
        self._unclosed, self._records = False, True
        if not any(matches(record, wanted) for wanted in agent.turn_failed):
            return _End(failed=False)
        words = [word for path in agent.error_paths for word in pick(record, path)]
        # The last record of a failed run may leave it to the one before to say why.
        return _End(failed=True, words=tuple(words) or (end.words if end else ()))

    def _line(self, line: str) -> None:
        agent = self._agent
        if not self._ignore_stderr:
            self._refused_by_line |= {each.verdict for each in agent.refusals if each.says(line, self._requested)}
            if agent.turn_failed_line and compiled(agent.turn_failed_line).match(line):
                self._failed_by_line = True
        if agent.session_id_line and not self._line_session_id and (found := compiled(agent.session_id_line).match(line)):
            self._line_session_id = found["id"]
        if agent.turn_began_line and compiled(agent.turn_began_line).match(line):
            self.turn_began = self._ignore_stderr = True

    def _refusal(self) -> Verdict:
        words = [word for end in (self._end, self._stderr_end) if end and end.failed for word in end.words]
        refusals = [each for each in self._agent.refusals if each.within_turn or not self.turn_began]
        said = {each.verdict for each in refusals for word in words if each.says(word, self._requested)}
        if not said and not self._ignore_stderr:
            said = self._refused_by_line
        return next(iter(said)) if len(said) == 1 else Verdict.other
