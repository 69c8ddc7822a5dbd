"""Over random runs: only a refusal deletes an ID, and no run is repeated once a turn had begun or output was let through."""

from __future__ import annotations

import contextlib
import uuid
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
from tests.run.stage import COMMANDS, E, R

SNIPPETS = [
    f"No conversation found with session ID: {R}\n",
    f"No conversation found with session ID: {E}\n",
    f"Error: thread/resume: thread/resume failed: no rollout found for thread id {R} (code -32600)\n",
    f"Error: thread/resume: thread/resume failed: thread {R} already has an active writer (code -32600)\n",
    f'Error resuming session: Invalid session identifier "{R}".\n',
    "Error: --resume requires a valid session ID\n",
    f'{{"type":"system","subtype":"init","session_id":"{E}"}}\n',
    '{"type":"assistant","message":"No conversation found with session ID"}\n',
    f'{{"type":"result","num_turns":1,"is_error":true,"result":"Prompt is too long","session_id":"{E}"}}\n',
    f'{{"type":"result","num_turns":1,"is_error":false,"result":"hi","session_id":"{E}"}}\n',
    f'{{"type":"thread.started","thread_id":"{R}"}}\n',
    '{"type":"turn.started"}\n',
    '{"type":"turn.failed","error":{"message":"Codex ran out of room in the model\'s context window."}}\n',
    '{"type":"turn.completed"}\n',
    "x" * 700_000 + "\n",
    "\x00\xff no line",
]
OUTPUT = st.lists(st.tuples(st.sampled_from([1, 2]), st.sampled_from(SNIPPETS)), max_size=6)
ENDS = st.sampled_from([0, 1, 42, -9])


class FakeChild:
    """In the place of a process: gives output to the observer and the buffer, as Child does."""

    plays: ClassVar[list[tuple[list[tuple[int, str]], int]]] = []
    seen: ClassVar[list[tuple[RunObserver, Any]]] = []

    def __init__(self, *, observer: RunObserver, output: Any, **_: Any) -> None:
        self.observer, self.output = observer, output

    def run(self) -> Outcome:
        said, code = FakeChild.plays[len(FakeChild.seen)]
        FakeChild.seen.append((self.observer, self.output))
        for number, text in said:
            piece = text.encode("latin-1")
            (self.observer.stdout if number == 1 else self.observer.stderr)(piece)
            self.output.put(number, piece)
            if self.observer.taken:
                self.output.release()
        return Outcome(code=code)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    agent=st.sampled_from(["claude", "codex", "gemini"]).map(get_agent),
    first=st.tuples(OUTPUT, ENDS),
    second=st.tuples(OUTPUT, ENDS),
)
def test_only_a_refusal_deletes_and_nothing_is_repeated_once_it_began(
    monkeypatch: pytest.MonkeyPatch, agent: Agent, first: Any, second: Any
) -> None:
    written: list[tuple[int, bytes]] = []
    monkeypatch.setattr(streams.os, "write", lambda number, data: written.append((number, bytes(data))) or len(data))
    monkeypatch.setattr(attempts, "Child", FakeChild)
    monkeypatch.setattr("sys.stdin", None)
    FakeChild.plays, FakeChild.seen = [first, second], []
    it = Attempts(runtime=agent, command=COMMANDS[agent.name], timeout_s=None, verbose=False)
    key = uuid.uuid4().hex
    with fake_store(StoreSettings()) as store:
        store.set(key, R)
        done = None
        with contextlib.suppress(AgentFailed, SessionBusy):
            done = store.resume(key, it, judge=judge)
        left = store.get(key)
        failures = store.resume_failures_total()
    watched = RunObserver(agent, R)
    for number, text in first[0]:
        (watched.stdout if number == 1 else watched.stderr)(text.encode("latin-1"))
    verdict = watched.judge(first[1])
    assert failures == verdict.verdict.refused
    if not verdict.verdict.refused:
        assert left == (R if done is None else done.session_id)
    size = sum(len(text) for _, text in first[0])
    repeated = len(FakeChild.seen) == 2
    assert repeated is (verdict.verdict.refused and not verdict.turn_began and size <= streams.HOLD_BYTES)
    shown = [*(() if repeated else first[0]), *(second[0] if repeated else ())]
    for number in (1, 2):
        expected = b"".join(text.encode("latin-1") for to, text in shown if to == number)
        assert b"".join(piece for to, piece in written if to == number) == expected
    if done is None and verdict.verdict.refused:
        assert left is None
    if done is not None:
        assert it.exit_code == done.value
    assert verdict.verdict is not Verdict.ok or done is not None
