"""One turn of the demo: dispatched by a worker through `SessionStore.resume()`, run by a stand-in agent process."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import DEVNULL, PIPE, CalledProcessError, Popen, SubprocessError
from typing import Final, Literal

from redis_sessions import LeaseHeld, ResumeResult, SessionStore, SessionStoreError, Turn
from redis_sessions.demo import agent as stand_in

AGENT_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a worker says.

    Attributes:
        what: `ready`, `began` a dispatch, `waits` for its lease, `done`, `failed`.
        key: the conversation.
        how: "resumed", "fresh" or "restarted", once done.
        session_id: the ID that the next turn is to resume.
        late_ms: how long after its time a planned dispatch began.
        took_ms: the whole dispatch.
        waited: it waited for a lease.
        wasted_ms: time in the agent for attempts to resume that it refused.
        saved: Redis now holds the session ID.
        alone: the agent saw no other run of this conversation at the same time.
        error: what went wrong, one line.
    """

    what: Literal["ready", "began", "waits", "done", "failed"]
    key: str = ""
    how: str = ""
    session_id: str | None = None
    late_ms: int = 0
    took_ms: int = 0
    waited: bool = False
    wasted_ms: int = 0
    saved: bool = False
    alone: bool = True
    error: str = ""


@dataclass(frozen=True, slots=True)
class StandIn:
    """The agent: a process per turn.

    Attributes:
        directory: where it keeps its sessions; all workers of a namespace must share it.
        keeps_ms: how long it keeps a session that is not used, in milliseconds.
        works_ms: how long a turn takes it, in milliseconds.
        journal: file that tells how each start went, or None.
        undisturbed: gives a context in which no exception of a signal handler strikes.
    """

    directory: Path
    keeps_ms: int
    works_ms: int
    journal: Path | None = None
    undisturbed: Callable[[], AbstractContextManager[None]] = nullcontext

    def run(self, key: str, session_id: str | None) -> Turn[bool]:
        """Run one turn; its value is whether it ran alone. Raises CalledProcessError, TimeoutExpired, OSError."""
        command = [sys.executable, "-I", "-S", stand_in.__file__, f"--dir={self.directory}"]
        command += [f"--conversation={hashlib.sha256(key.encode()).hexdigest()}"]
        command += [f"--keeps-ms={self.keeps_ms}", f"--works-ms={self.works_ms}"]
        command += [f"--journal={self.journal}"] if self.journal else []
        command += [f"--resume={session_id}"] if session_id else []
        with ExitStack() as stack:
            # Were it interrupted between starting the agent and knowing it, the agent would run on.
            with self.undisturbed():
                agent = stack.enter_context(Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, text=True))
                stack.callback(agent.kill)
            stdout, stderr = agent.communicate(timeout=AGENT_TIMEOUT_S)
        if agent.returncode != 0:
            raise CalledProcessError(agent.returncode, command, stdout, stderr)
        record = json.loads(stdout)
        return Turn(record["session_id"], record["alone"])


class Worker:
    """Dispatches one turn after the other.

    Attributes:
        store: shared with all other workers.
        agent: runs the turns.
        wait_ms: how long a dispatch waits for a conversation that another worker runs, in milliseconds.
        say: takes what is to be told.
    """

    def __init__(self, store: SessionStore, agent: StandIn, wait_ms: int, say: Callable[[Event], None]) -> None:
        self.store = store
        self.agent = agent
        self.wait_ms = wait_ms
        self.say = say

    def dispatch(self, key: str, late_ms: int = 0) -> bool:
        """Run one turn of a conversation and tell how it went. False if it failed; why is told, too."""
        event = Event(what="began", key=key, late_ms=late_ms)
        self.say(event)
        began_s = time.monotonic()
        wasted_ms = 0
        waited = False

        def run(session_id: str | None) -> Turn[bool]:
            nonlocal wasted_ms
            asked_s = time.monotonic()
            try:
                return self.agent.run(key, session_id)
            except CalledProcessError:
                wasted_ms += ms_since(asked_s) if session_id else 0
                raise

        try:
            try:
                result = self.store.resume(key, run)
            except LeaseHeld:
                # Asked in two steps only so that the waiting can be seen.
                waited = True
                self.say(replace(event, what="waits"))
                result = self.store.resume(key, run, wait_ms=self.wait_ms)
        except (SessionStoreError, SubprocessError, OSError) as error:
            self.say(replace(event, what="failed", took_ms=ms_since(began_s), waited=waited, error=_in_short(error)))
            return False
        self.say(replace(_done(event, result), took_ms=ms_since(began_s), waited=waited, wasted_ms=wasted_ms))
        return True


def _done(event: Event, result: ResumeResult[bool]) -> Event:
    return replace(event, what="done", how=result.how, session_id=result.session_id, saved=result.saved, alone=result.value)


def _in_short(error: Exception) -> str:
    said = error.stderr if isinstance(error, CalledProcessError) else str(error)
    return f"{type(error).__name__}: {ascii(str(said).strip())[1:-1][-200:]}"


def ms_since(then_s: float) -> int:
    """Milliseconds that have passed since a time of `time.monotonic()`."""
    return round((time.monotonic() - then_s) * 1000)
