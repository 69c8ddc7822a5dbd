"""Over random turns: only a refusal deletes an ID, only an answer saves one, and nothing is repeated or tried for ever."""

from __future__ import annotations

import contextlib
import signal
import uuid
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redis_sessions import StoreSettings, Verdict
from redis_sessions.agents import Agent, get_agent
from redis_sessions.agents.judge import RunObserver
from redis_sessions.cli.run import attempts, streams
from redis_sessions.cli.run.attempts import AgentFailed, Attempts, judge
from redis_sessions.cli.run.process import Outcome
from redis_sessions.errors import SessionBusy
from redis_sessions.testing import fake_store
from tests.run.stage import E, R

ASKED = "{asked}"
# Two of them are more than is held back. By its name, so that a failing case can be printed.
LARGE = "{large}"
SNIPPETS = [
    f"No conversation found with session ID: {ASKED}\n",
    f"No conversation found with session ID: {E}\n",
    f"Error: thread/resume: thread/resume failed: no rollout found for thread id {ASKED} (code -32600)\n",
    f"Error: thread/resume: thread/resume failed: thread {ASKED} already has an active writer (code -32600)\n",
    f'Error resuming session: Invalid session identifier "{ASKED}".\n',
    "Error: --resume requires a valid session ID\n",
    f'{{"type":"system","subtype":"init","session_id":"{E}"}}\n',
    f'{{"type":"assistant","message":"No conversation found with session ID","session_id":"{E}"}}\n',
    f'{{"type":"assistant","message":{{"model":"<synthetic>"}},"session_id":"{E}"}}\n',
    f'{{"type":"result","num_turns":1,"is_error":true,"result":"Prompt is too long","session_id":"{E}"}}\n',
    f'{{"type":"result","num_turns":1,"is_error":false,"result":"hi","session_id":"{E}"}}\n',
    f'{{"type":"thread.started","thread_id":"{E}"}}\n',
    '{"type":"turn.started"}\n',
    '{"type":"item.completed","item":{"type":"agent_message"}}\n',
    '{"type":"turn.failed","error":{"message":"Codex ran out of room in the model\'s context window."}}\n',
    '{"type":"turn.completed"}\n',
    LARGE,
    "\x00\xff no line",
]
OUTPUT = st.lists(st.tuples(st.sampled_from([1, 2]), st.sampled_from(SNIPPETS)), max_size=6)
# An exit code, and who asked it to end before that: nobody, a time limit, the limit after its record, or a signal.
EXITS = st.tuples(st.sampled_from([0, 1, 42, -9, -15]), st.sampled_from([None, None, None, "timeout", "linger", "signal"]))
COMMANDS = {
    "claude json": ["claude", "-p", "--output-format", "json"],
    "claude": ["claude", "-p"],
    "codex json": ["codex", "exec", "--json"],
    "codex": ["codex", "exec"],
    "gemini": ["gemini", "-p", "go on"],
}


@dataclass
class Played:
    """One run of the agent, as it went."""

    observer: RunObserver
    output: Any
    asked: str | None
    outcome: Outcome
    shown: list[tuple[int, bytes]] = field(default_factory=list)

    def verdict(self, agent: Agent, command: list[str]) -> Any:
        again = agent.observer(self.asked, command)
        for number, piece in self.shown:
            (again.stdout if number == 1 else again.stderr)(piece)
        # Asked to end, an agent that exits with 0 before its record has not succeeded.
        asked_to_end = self.outcome.ended_for or self.outcome.signal
        return again.judge(1 if asked_to_end and not self.outcome.code and again.closed != "ok" else self.outcome.code)


class FakeChild:
    """In the place of a process: gives output to the observer and the buffer, as Child does."""

    plays: ClassVar[list[Any]] = []
    seen: ClassVar[list[Played]] = []
    asked: ClassVar[list[str | None]] = []

    def __init__(self, *, observer: RunObserver, output: Any, answered: Any, **_: Any) -> None:
        self.observer, self.output, self.answered = observer, output, answered

    def run(self) -> Outcome:
        said, (code, ended) = FakeChild.plays.pop(0)
        asked = FakeChild.asked[-1]
        shown = [
            (number, text.replace(ASKED, asked or E).replace(LARGE, "x" * 700_000 + "\n").encode("latin-1"))
            for number, text in said
        ]
        told = False
        for number, piece in shown:
            (self.observer.stdout if number == 1 else self.observer.stderr)(piece)
            if self.observer.answered_id and not told:
                told = True
                self.answered(self.observer.answered_id)
            self.output.put(number, piece)
            if self.observer.taken:
                self.output.release()
        closed = self.observer.closed if ended else None
        if ended == "linger" and closed is None:
            ended = None
        outcome = Outcome(
            code=code,
            ended_for=ended if ended in ("timeout", "linger") else None,
            signal=signal.SIGTERM if ended == "signal" else None,
            closed=closed,
        )
        FakeChild.seen.append(Played(self.observer, self.output, asked, outcome, shown))
        return outcome


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(COMMANDS)), plays=st.lists(st.tuples(OUTPUT, EXITS), min_size=2, max_size=12))
def test_random_turns(  # noqa: PLR0915 - one statement for each thing that must hold
    monkeypatch: pytest.MonkeyPatch, name: str, plays: list[Any]
) -> None:
    agent, command = get_agent(name.split(maxsplit=1)[0]), COMMANDS[name]
    written: list[tuple[int, bytes]] = []
    monkeypatch.setattr(streams.os, "write", lambda number, data: written.append((number, bytes(data))) or len(data))
    monkeypatch.setattr(attempts, "Child", FakeChild)
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr("sys.stderr", None)
    place = Attempts.place
    monkeypatch.setattr(
        Attempts, "place", lambda self, asked, *more: FakeChild.asked.append(asked) or place(self, asked, *more)
    )
    FakeChild.plays, FakeChild.asked = list(plays), []
    key, failed_in_a_row, limit = uuid.uuid4().hex, 0, 2
    with fake_store(StoreSettings(give_up_after=limit)) as store:
        store.set(key, R)
        while len(FakeChild.plays) > 1:
            FakeChild.seen, written[:] = [], []
            it = Attempts(
                runtime=agent,
                command=command,
                timeout_s=1.0,
                verbose=False,
                quiet=True,  # what is said begins a line of its own
                save_early=lambda session_id, store=store: store.save_early(key, session_id),
            )
            before, done = store.get(key), None
            with contextlib.suppress(AgentFailed, SessionBusy):
                done = store.resume(key, it, agent=agent, judge=judge)
            after, (first, *rest) = store.get(key), FakeChild.seen
            verdicts = [each.verdict(agent, command) for each in FakeChild.seen]
            refused = [each.verdict.refused for each in verdicts]
            # No ID is dropped without a refusal.
            if before is not None and after is None:
                assert any(refused)
            # None is saved before the model has answered in it.
            if after not in (None, before):
                assert after in [each.observer.answered_id for each in FakeChild.seen]
            # Whatever the process ends with, a session that answered is kept, unless it is of no use.
            if (answered := FakeChild.seen[-1].observer.answered_id) and not refused[-1]:
                assert after == answered
            # No run is repeated after an answer, or once anything was shown of it; and none without a refusal.
            if rest:
                assert refused[0]
                assert not first.observer.taken
                assert sum(len(piece) for _, piece in first.shown) <= streams.HOLD_BYTES
            shown = [piece for each in (rest or [first]) for piece in each.shown]
            for number in (1, 2):
                expected = b"".join(piece for to, piece in shown if to == number)
                assert b"".join(piece for to, piece in written if to == number) == expected
            # No more than so many undecided failures follow each other on one ID.
            undecided = done is None and first.asked == before == after and first.asked is not None
            counted = undecided and it.judgement is not None and it.judgement.verdict is Verdict.other
            if counted and it.judgement is not None and not it.judgement.cut_short:
                failed_in_a_row += 1
            # A session that begins has not failed yet, even if it has the ID of the one before.
            if after != before or done is not None or (FakeChild.seen[-1].asked is None and after == answered):
                failed_in_a_row = 0
            assert failed_in_a_row <= limit
            if failed_in_a_row == limit and undecided:
                FakeChild.plays.insert(0, ([], (3, None)))
                FakeChild.seen = []
                with contextlib.suppress(AgentFailed):
                    store.resume(key, it, agent=agent, judge=judge)
                assert FakeChild.asked[-1] is None
                assert store.get(key) == before
            if done is not None:
                assert it.exit_code == done.value
            # A failure is never an exit code of 0.
            assert done is not None or it.exit_code != 0
