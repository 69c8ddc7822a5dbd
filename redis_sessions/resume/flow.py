"""One turn of a conversation as a generator without I/O: resume the live session, or start fresh.

| asked to resume | what came back | the ID | counters | then |
| --- | --- | --- | --- | --- |
| nothing | a turn with ID E | save E | fresh_starts +1 | return |
| nothing | a turn without an ID | - | fresh_starts +1 | return, saved=False |
| R | a turn with R, or with no ID | save R (a new TTL) | resumes +1 | return |
| R | a turn with E, not R | save E | resumes +1 | return, session_changed=True |
| R | refused: gone, invalid ID, unusable | reject R | resume_failures +1, at once | run fresh, once (1) |
| R | busy (another writer) | keep, TTL untouched | | raise SessionBusy |
| R | anything else | keep, TTL untouched | | raise the agent's error |
| nothing, or fresh after a refusal | failure | nothing is saved | a refusal stays counted | raise the agent's error |

A value in Redis that is not a session ID, or that the caller doesn't accept as one of its agent, counts as "nothing". An
ID of that kind that a turn gives is not saved, as if the turn had given none. The result's reason says which it was.

(1) If the turn had begun: raise the agent's error. If the lease was taken meanwhile: raise LeaseHeld, no run.

The flow yields Do, Run and Pause; `runner.py` carries them out and sends the result back, or throws in what was raised.
Whatever is raised, the lease is released on the way out. An outage of Redis never stops an agent (default; see
`on_outage`), and a turn that ran is never lost to an error of Redis.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Generator
from dataclasses import dataclass
from types import CoroutineType
from typing import Any, Final, Generic, TypeAlias, TypeVar

from redis_sessions.errors import (
    AccessDenied,
    CorruptValue,
    InvalidSessionID,
    LeaseHeld,
    SessionBusy,
    SessionStoreError,
    StoreUnavailable,
)
from redis_sessions.keys import FRESH_STARTS, RESUME_FAILURES, RESUMES
from redis_sessions.operations.command import Op
from redis_sessions.operations.conversation import Held, Lease, Operations, new_token
from redis_sessions.resume.turn import How, InvalidTurn, Judgement, Request, ResumeResult, Turn, Verdict, excerpt

log = logging.getLogger("redis_sessions")

T = TypeVar("T")

# How long to wait between two claims of a conversation that another worker holds: at first, and at most.
_POLL_S: Final = (0.02, 0.5)


@dataclass(frozen=True, slots=True)
class Do(Generic[T]):
    """Carry out this operation on the store and send back its result."""

    op: Op[T]


@dataclass(frozen=True, slots=True)
class Run:
    """Run the agent, resuming `session_id` if there is one, and keep `lease` renewed meanwhile."""

    session_id: str | None
    lease: Lease | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this many seconds."""

    seconds: float


Step: TypeAlias = Do[Any] | Run | Pause
Flow: TypeAlias = Generator[Step, Any, T]


def resume(ops: Operations, request: Request) -> Flow[ResumeResult[Any]]:
    """The flow of one turn, from claim to release."""
    return (yield from _Turn(ops, request).flow())


class _Turn:
    """The state of one turn while it goes through the table."""

    def __init__(self, ops: Operations, request: Request) -> None:
        self.ops = ops
        self.key = request.key
        self.request = request
        # Its token is chosen here, so that a claim whose reply never came can still be released.
        self.claim = Lease(request.key, new_token())
        self.claimed = False
        self.ran = False
        self.away = False
        self.warned = False
        self.previous: str | None = None
        self.reasons: list[str] = []

    def flow(self) -> Flow[ResumeResult[Any]]:
        self.ops.keys.session_id(self.key)  # refuse a bad key before anything is sent
        try:
            yield from self._look_up()
            how: How = "resumed" if self.previous else "fresh"
            try:
                turn = yield from self._run(self.previous)
            except Exception as error:
                if self.previous is None or isinstance(error, InvalidTurn):
                    raise
                yield from self._handle_failure(error, self.previous)
                how = "restarted"
                turn = yield from self._run(None)
            return (yield from self._keep(turn, how))
        except GeneratorExit:
            self.claimed = False  # dropped halfway, as in a forked child: no driver is left to do anything
            raise
        finally:
            yield from self._release()

    def _do(self, op: Op[T]) -> Flow[T]:
        try:
            result: T = yield Do(op)
        except StoreUnavailable:
            self.away = True
            raise
        self.away = False
        return result

    def _look_up(self) -> Flow[None]:
        try:
            if self.request.lease:
                lease = yield from self._acquire()
                found, unusable = lease.session_id, lease.unusable
            else:
                try:
                    found, unusable = (yield from self._do(self.ops.get(self.key))), False
                except (InvalidSessionID, CorruptValue):
                    found, unusable = None, True
        except StoreUnavailable as error:
            if self.request.on_outage == "raise":
                raise
            self.claimed = False
            self.warned = True
            fresh = "fresh, without a lease" if self.request.lease else "fresh"
            self._say(f"{_describe(error)}; the turn runs {fresh}, and unless that changes by its end nothing is saved")
            return
        if unusable:
            self._say("what Redis held was not a valid session ID")
        elif found is not None and (why := self.request.objection(found)):
            self._say(f"Redis held {excerpt(found)}, which {why}: started fresh")
        else:
            self.previous = found

    def _acquire(self) -> Flow[Lease]:
        deadline_s = time.monotonic() + self.request.wait_ms / 1000
        pause_s = _POLL_S[0]
        while True:
            self.claimed = True
            found = yield from self._do(self.ops.acquire(self.key, self.claim.token))
            if isinstance(found, Lease):
                self.claim = found
                return found
            self.claimed = False
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise LeaseHeld(self.key, holder=found.holder, remaining_ms=found.remaining_ms)
            # Jitter, so that workers that wait for the same conversation don't ask at the same moments.
            yield Pause(min(pause_s * random.uniform(0.5, 1), left_s, found.remaining_ms / 1000))
            pause_s = min(pause_s * 1.5, _POLL_S[1])

    def _run(self, session_id: str | None) -> Flow[Turn[Any]]:
        self.ran = True
        try:
            turn = yield Run(session_id, self.claim if self.claimed else None)
        finally:
            # An outage seen before the run may be over: a lease that was renewed meanwhile is to be released.
            self.away = self.away and not self.claimed
        if not isinstance(turn, Turn):
            _close(turn)
            raise InvalidTurn(f"run must return a redis_sessions.Turn, not {type(turn).__name__}")
        return turn

    def _handle_failure(self, error: Exception, asked: str) -> Flow[None]:
        """Act on a failed resume: return if a fresh run may follow, else raise."""
        judgement = self.request.judge(error)
        if not isinstance(judgement, Judgement):
            _close(judgement)
            name = getattr(self.request.judge, "__qualname__", None) or repr(self.request.judge)
            raise TypeError(
                f"judge {name} must return a redis_sessions.Judgement, not {type(judgement).__name__}"
            ) from error
        if judgement.verdict is Verdict.busy:
            raise SessionBusy(self.key, session_id=asked) from error
        if not judgement.verdict.refused:
            raise error
        mine = True
        try:
            if self.claimed:
                mine = yield from self._do(self.ops.reject(self.claim))
            else:
                yield from self._do(self.ops.delete(self.key, asked))
        except StoreUnavailable as outage:
            if self.request.on_outage == "raise" and not judgement.turn_began:
                raise outage from error
            self._say(f"{_describe(outage)}; session {asked} may be tried once more")
        yield from self._count(RESUME_FAILURES)
        if judgement.turn_began:
            raise error
        if not mine:
            self.claimed = False
            raise LeaseHeld(self.key) from error
        self._say(f"session {asked} was refused ({judgement.verdict})", logging.INFO)

    def _keep(self, turn: Turn[Any], how: How) -> Flow[ResumeResult[Any]]:
        session_id = self._given(turn) or (self.previous if how == "resumed" else None)
        saved = False
        if session_id is not None:
            try:
                saved = yield from self._save(session_id)
            except SessionStoreError as error:
                lost = "may expire as if unused" if session_id == self.previous else "may never be resumed"
                # An outage that lasted from start to end was logged at its start.
                level = logging.INFO if self.warned and self.away else logging.WARNING
                self._say(f"not saved: {error}; session {session_id} {lost}", level)
        elif not turn.session_id:
            self._say("the turn gave no session ID", logging.INFO)
        yield from self._count(RESUMES if how == "resumed" else FRESH_STARTS)
        return ResumeResult(
            value=turn.value,
            session_id=session_id,
            how=how,
            previous=self.previous,
            saved=saved,
            session_changed=how == "resumed" and session_id != self.previous,
            reason="; ".join(self.reasons) or None,
        )

    def _given(self, turn: Turn[Any]) -> str | None:
        """The session ID that a turn gave; None if no turn could resume it."""
        if not turn.session_id:
            return None
        why = self.request.objection(turn.session_id)
        if why is None:
            return turn.session_id
        self._say(f"the turn gave {excerpt(turn.session_id)} as its session, which {why}: not saved")
        return None

    def _save(self, session_id: str) -> Flow[bool]:
        if not self.request.lease:
            yield from self._do(self.ops.set(self.key, session_id))
            return True
        if not self.claimed:
            # The turn ran without a lease, since Redis was away. What another worker has saved or runs now takes precedence.
            found = yield from self._do(self.ops.acquire(self.key, self.claim.token))
            self.claimed = isinstance(found, Lease)
            theirs = found.session_id if isinstance(found, Lease) else None
            if isinstance(found, Held) or (theirs and theirs != session_id and not self.request.objection(theirs)):
                self._say("not saved: while Redis was away, the conversation went on elsewhere or kept its old session")
                return False
        saved = yield from self._do(self.ops.save(self.claim, session_id))
        self.claimed = False
        if not saved:
            self._say("not saved: another worker took the conversation over")
        return saved

    def _release(self) -> Flow[None]:
        if self.claimed and not self.away:
            self.claimed = False
            try:
                if not (yield from self._do(self.ops.release(self.claim))) and self.ran:
                    log.error("conversation %r was taken over before its turn ended", self.key)
            except SessionStoreError as error:
                log.warning("lease of %r was not released, it will expire: %s", self.key, error)

    def _count(self, name: str) -> Flow[None]:
        if self.away:
            return
        try:
            yield Do(self.ops.increment(name))  # not by `_do`: it is sent only once, so losing it doesn't show an outage
        except SessionStoreError as error:
            log.warning("%s was not counted: %s", name, error)

    def _say(self, reason: str, level: int = logging.WARNING) -> None:
        self.reasons.append(reason)
        log.log(level, "conversation %r: %s", self.key, reason)


def _describe(error: StoreUnavailable) -> str:
    what = "the store refuses access" if isinstance(error, AccessDenied) else "store unavailable"
    return f"{what}: {error}"


def _close(given: object) -> None:
    # An async function where a plain one belongs: the error reports it, and Python need not warn that it was never awaited.
    if isinstance(given, CoroutineType):
        given.close()
