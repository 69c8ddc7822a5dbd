"""How an agent's run is judged: from its records first, then from its stderr, never from what an assistant or a tool said.

An Agent is a description of one runtime, and nothing but data: `agents.py` has them. A Watch follows one run.

1. A run failed if its exit code is neither 0 nor unknown, or the last closing record on stdout says so (or, for a runtime
   that fails with 0 and no record, a line of stderr). Where stdout has begun with text, what looks like a record in it is
   text, too.
2. A run that succeeded is ok; its session ID is the one its closing record (or, in text mode, a line of stderr) names. One
   that began a turn in its records and did not close it was cut short, whatever its exit code.
3. Of one that failed, the closing record's own words decide, if they match a refusal from their first character on.
4. Else, and only if nothing had been said yet, the lines of stderr do, likewise, if all that match say the same.
5. What names another session than the one asked for is about that other one. What is left undecided is `other`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from redis_sessions.agents.command_line import Place
from redis_sessions.agents.evidence import Evidence, of_process
from redis_sessions.agents.output import Reader, Record, matches, pick
from redis_sessions.resume.turn import Judgement, Verdict

UUID: Final = r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A text by which a runtime says no.

    Attributes:
        verdict: what it means.
        pattern: a regular expression, matched from the first character of a line or message; a group `id` is the session
            it names, in whatever quotes.
        after_begin: whether it also counts once a turn had begun; then only in a closing record.
    """

    verdict: Verdict
    pattern: str
    after_begin: bool = False

    def says(self, text: str, requested: str | None) -> bool:
        """Whether a text is this refusal, of the requested session."""
        found = re.compile(self.pattern).match(text)
        named = found.groupdict().get("id") if found else None
        return found is not None and (requested is None or named is None or named == requested)


@dataclass(frozen=True, kw_only=True)
class Agent:
    """One runtime, described: its session IDs, its JSON records, its ways to say no. Needs only what that runtime has.

    A record, here, is a dict: it stands for every JSON object on stdout that has all its names and values, `...` for any
    value but null, false, zero and empty. A path is dotted, `error.message`.

    >>> mine = Agent(
    ...     name="mine",
    ...     session_at=(({"type": "end"}, "session.id"),),
    ...     began=({"type": "step"},),
    ...     closed=({"type": "end"},),
    ...     failed=({"type": "end", "error": ...},),
    ...     wrong=("error.message",),
    ...     refusals=(Refusal(Verdict.gone, "no such session"), Refusal(Verdict.busy, "session is locked")),
    ... )
    >>> mine.judge(exit_code=1, stdout='{"type": "end", "error": {"message": "no such session: 7"}}').verdict
    <Verdict.gone: 'gone'>
    >>> mine.judge(exit_code=0, stdout='{"type": "end", "session": {"id": "8"}}').session_id
    '8'

    `store.resume(key, run, judge=mine.judge)` then reads what `run` raises, such as a `subprocess.CalledProcessError`.

    Attributes:
        name: what `get_agent` and `--agent` call it.
        commands: names of its executable, by which `redis-sessions run` knows it.
        session_id: regular expression of its session IDs, whole.
        resume: arguments by which `redis-sessions run` resumes `{id}`.
        place: where that puts them in a command line; None if only `{resume}` can say.
        one_turn: options of which one makes it run one turn and end, where it would otherwise talk to a terminal.
        session_at: (record, path) pairs: where records name the session.
        session_line: regular expression of a stderr line that names it, group `id`.
        named_by: what to add to a command so that its output names the session, where it doesn't of itself.
        began: records by which a turn has begun.
        spoken: records after which stderr may quote what was said; none: those by which a turn has begun.
        began_line: regular expression of a stderr line after which stderr is a transcript.
        closed: records that end a run, well or not; the last of them counts.
        failed: those of them that say that it failed.
        failed_line: regular expression of a stderr line that says that the run failed, whatever its exit code.
        wrong: paths in a failed record to its own words.
        refusals: its ways to say no.
        evidence: reads an exception by which it fails, as Evidence; unless told its `returncode`, `stdout` and `stderr`.
    """

    name: str
    commands: tuple[str, ...] = ()
    session_id: str = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,255}"
    resume: tuple[str, ...] = ()
    place: Place | None = None
    one_turn: tuple[str, ...] = ()
    session_at: tuple[tuple[Record, str], ...] = ()
    session_line: str | None = None
    named_by: str | None = None
    began: tuple[Record, ...] = ()
    spoken: tuple[Record, ...] = ()
    began_line: str | None = None
    closed: tuple[Record, ...] = ()
    failed: tuple[Record, ...] = ()
    failed_line: str | None = None
    wrong: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    evidence: Callable[[Exception], Evidence] = of_process

    def judge(
        self,
        error: Exception | None = None,
        *,
        exit_code: int | None = None,
        stdout: str | bytes = "",
        stderr: str | bytes = "",
        requested: str | None = None,
    ) -> Judgement:
        """Judge a finished run; also the `judge` of `resume`, given what `run` raised.

        Args:
            error: an exception with `returncode`, `stdout` and `stderr`, as `subprocess.CalledProcessError` has, or whatever
                else `evidence` reads; then the rest is not looked at.
            exit_code: of the process; None if it is not known.
            stdout: all of it, as text or bytes.
            stderr: likewise.
            requested: the session that was to be resumed, if known; a refusal that names another is then not heard.
        """
        if error is not None:
            exit_code, stdout, stderr = self.evidence(error)
        watch = Watch(self, requested)
        watch.stdout(_bytes(stdout))
        watch.stderr(_bytes(stderr))
        return watch.judge(exit_code)

    def can_be(self, session_id: str) -> bool:
        """Whether this can be a session ID of this runtime."""
        return re.fullmatch(self.session_id, session_id) is not None


@dataclass(frozen=True, slots=True)
class _End:
    """What a closing record said: whether the run failed, and in which words."""

    failed: bool
    words: tuple[str, ...] = ()


class Watch:
    """Follows one run by its output, in pieces as they come; memory is bounded.

    Attributes:
        turn_began: whether the agent has begun to work on the turn.
        named: once judged, what a run that succeeded named as its session, be it one of this runtime or not.
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
        self._spoken = False
        self._unclosed = False
        self._end: _End | None = None
        self._stderr_end: _End | None = None
        self._failed_by_line = False
        self._heard: set[Verdict] = set()

    def stdout(self, piece: bytes) -> None:
        """A further piece of standard output."""
        self._take_stdout(self._stdout.feed(piece))

    def stderr(self, piece: bytes) -> None:
        """A further piece of standard error."""
        self._take_stderr(self._stderr.feed(piece))

    def judge(self, exit_code: int | None) -> Judgement:
        """What became of the run, now that it has ended."""
        self._take_stdout(self._stdout.close())
        self._take_stderr(self._stderr.close())
        # With exit code 0, an error on stderr may be anybody's log.
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
        for where, path in agent.session_at:
            if matches(record, where):
                self._session_id = next(pick(record, path), self._session_id)
                self._records = True
        if any(matches(record, wanted) for wanted in agent.began):
            self.turn_began = self._unclosed = self._records = True
        if any(matches(record, wanted) for wanted in agent.spoken or agent.began):
            self._spoken = True
        if not any(matches(record, wanted) for wanted in agent.closed):
            return end
        self._unclosed, self._records = False, True
        if not any(matches(record, wanted) for wanted in agent.failed):
            return _End(failed=False)
        words = [word for path in agent.wrong for word in pick(record, path)]
        # What ends a failed run may leave it to the record before to say why.
        return _End(failed=True, words=tuple(words) or (end.words if end else ()))

    def _line(self, line: str) -> None:
        agent = self._agent
        if not self._spoken:
            self._heard |= {refusal.verdict for refusal in agent.refusals if refusal.says(line, self._requested)}
        if agent.session_line and (found := re.match(agent.session_line, line)) and not self._line_session_id:
            self._line_session_id = found["id"]
        if agent.failed_line and not self._spoken and re.match(agent.failed_line, line):
            self._failed_by_line = True
        if agent.began_line and re.match(agent.began_line, line):
            self.turn_began = self._spoken = True

    def _refusal(self) -> Verdict:
        said = self._said([word for end in (self._end, self._stderr_end) if end and end.failed for word in end.words])
        if not said and not self._spoken:
            said = self._heard
        return said.pop() if len(said) == 1 else Verdict.other

    def _said(self, words: list[str]) -> set[Verdict]:
        return {
            refusal.verdict
            for refusal in self._agent.refusals
            for word in words
            if (refusal.after_begin or not self.turn_began) and refusal.says(word, self._requested)
        }


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
