"""One turn of a conversation as a generator without I/O: resume the live session, or start fresh.

| asked to resume | what came back | the ID | counters | then |
| --- | --- | --- | --- | --- |
| nothing | a turn with ID E | save E | fresh_starts +1 | return |
| nothing | a turn without an ID | - | fresh_starts +1 | return, saved=False |
| R | a turn with R, or with no ID | save R (a new TTL) | resumes +1 | return |
| R | a turn with E, not R | save E | resumes +1 (1) | return, session_changed=True |
| R | refused: gone, invalid ID, unusable | reject R | resume_failures +1, at once | run fresh, once (2) |
| R | busy (another writer) | keep, TTL untouched | | raise SessionBusy |
| R, made elsewhere | refused as gone | reject R | none at once | run fresh, once (2); moved=True |
| R | unavailable: provider, login, usage limit, network | keep, TTL untouched | | raise the agent's error |
| R | anything else | keep, TTL untouched; failures +1 (3) | | raise the agent's error |
| any | failed or cut short after an answer in E | save E, complete=0 (4) | as for a turn | raise the agent's error |
| nothing, or fresh after a refusal | failure before that | nothing is saved | | raise the agent's error |

A value in Redis that is not a session ID, that the caller doesn't accept as one of its agent, or whose record names another
agent, counts as "nothing"; it stands until a turn's ID is saved over it. An ID that can't be one of the agent's and that a
turn gives is not saved, as if the turn had given none. The result's reason says which it was.

A session that has reached one of the settings' limits (`max_turns`, `max_lifetime_ms`, `max_context_tokens`) is not tried
either: the turn runs fresh, how="rotated", and R stands until that turn has been saved. "Elsewhere" is a place that differs
from the caller's in what the agent is bound to; with on_elsewhere="raise", SessionElsewhere is raised before anything runs.

(1) Unless R was gone, as the turn's `previous_gone` says: then resume_failures +1, fresh_starts +1, and how="restarted".
(2) If the turn had begun: raise the agent's error. If the lease was taken meanwhile: raise LeaseHeld, no run.
(3) Not if the run was cut short. After `give_up_after` of them in a row, the next turn runs fresh, how="gave_up"; R stands
    until that turn has been saved.
(4) Also what was given to `save_early`, whatever is raised; a failure counts as in (3). Not if the session is unusable.

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
    SessionElsewhere,
    SessionStoreError,
    StoreUnavailable,
    is_away,
)
from redis_sessions.keys import FRESH_STARTS, GAVE_UP, RESUME_FAILURES, RESUMES, ROTATIONS
from redis_sessions.operations.command import Op
from redis_sessions.operations.conversation import BEGINS, Failures, Held, Lease, Operations, Record, Written, new_token
from redis_sessions.operations.text import duration
from redis_sessions.resume.turn import (
    How,
    InvalidTurn,
    Judgement,
    Request,
    ResumeResult,
    Turn,
    Verdict,
    excerpt,
    judge_by_phrase,
)

log = logging.getLogger("redis_sessions")

T = TypeVar("T")

# What is counted for a turn, by how it ran; for any other way, a fresh start.
_COUNTERS: Final[dict[How, list[str]]] = {
    "resumed": [RESUMES],
    "gave_up": [FRESH_STARTS, GAVE_UP],
    "rotated": [FRESH_STARTS, ROTATIONS],
}
# How long to wait between two claims of a conversation that another worker holds: at first, and at most.
_POLL_S: Final = (0.02, 0.5)
_UNKNOWN: Final = Record()


@dataclass(slots=True)
class Do(Generic[T]):
    """Carry out this operation on the store and send back its result."""

    op: Op[T]


@dataclass(slots=True)
class Run:
    """Run the agent, resuming `session_id` if there is one, and keep `lease` renewed meanwhile."""

    session_id: str | None
    lease: Lease | None
    # What it returned, since an interrupt may come before the flow is sent it.
    came_back: object = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this many seconds."""

    seconds: float


Step: TypeAlias = Do[Any] | Run | Pause
Flow: TypeAlias = Generator[Step, Any, T]


def resume(ops: Operations, request: Request) -> Flow[ResumeResult[Any]]:
    """The flow of one turn, from claim to release."""
    return _RunningTurn(ops, request).flow()


class _RunningTurn:
    """The state of one turn while it goes through the table."""

    def __init__(self, ops: Operations, request: Request) -> None:
        self.ops = ops
        self.key = request.key
        self.request = request
        # Its token is chosen here, so that a claim whose reply never came can still be released.
        self.claim = Lease(request.key, new_token())
        self.claimed = False
        # What is known of the session that was found.
        self.record = _UNKNOWN
        self.previous: str | None = None
        self.how: How = "fresh"
        # The last run, until what came back is being saved.
        self.run: Run | None = None
        self.ran = False
        # In which session the model has answered, while that is not saved for good.
        self.answered: str | None = None
        self.saved_early: str | None = None
        self.undecided = False
        self.moved = False
        self.away = False
        self.warned = False
        # Whether a save or release that ends the turn has begun and its outcome is not known.
        self.unsure = False
        self.replicated: bool | None = None
        self.uncounted: list[str] = []
        self.reasons: list[str] = []

    def flow(self) -> Flow[ResumeResult[Any]]:
        self.ops.keys.session_id(self.key)  # refuse a bad key before anything is sent
        try:
            try:
                yield from self._look_up()
                asked = self.previous if self.how == "resumed" else None
                try:
                    turn = yield from self._run(asked)
                except InvalidTurn:
                    raise
                except Exception as error:
                    if self._turn() is not None:  # a signal's, after the run
                        raise
                    yield from self._handle_failure(error, asked)
                    self.how = "restarted"
                    turn = yield from self._run_fresh()
                return (yield from self._keep(turn))
            except GeneratorExit:
                self.claimed = False  # dropped halfway, as in a forked child: no driver is left to do anything
                self.answered, self.run, self.uncounted = None, None, []
                raise
            finally:
                yield from self._finish()
        finally:
            if self.claimed and not self.away:
                yield from self._finish()  # which was interrupted

    def save_early(self, session_id: str) -> Op[bool]:
        """Save the ID of this turn while it runs: the model has answered in it."""
        if self._objects(session_id):
            return False
        self.answered = session_id
        if not self.claimed:
            return False
        written = yield from self._saving(session_id, complete=False, keep_lease=True)
        if written.lacking:
            log.warning("conversation %r: %s", self.key, written.lacking)
        if written.mine:
            self.saved_early = session_id
        return written.mine

    def _look_up(self) -> Flow[None]:
        try:
            if self.request.lease:
                lease = yield from self._acquire()
                found, unusable = lease.session_id, lease.unusable
            else:
                try:
                    peek = yield Do(self.ops.peek(self.key))
                    found, unusable = peek and peek.session_id, False
                    self.record = (peek and peek.record) or self.record
                except (InvalidSessionID, CorruptValue):
                    found, unusable = None, True
        except StoreUnavailable as error:
            self.away = True
            if self.request.on_outage == "raise":
                raise
            self.claimed = False
            self.warned = True
            fresh = "fresh, without a lease" if self.request.lease else "fresh"
            self._say(f"{_describe(error)}; the turn runs {fresh}, and unless that changes by its end nothing is saved")
            return
        if unusable:
            self._say("what Redis held was not a valid session ID")
        elif found is not None and (why := self.request.foreign(found) or self._another_agent()):
            self._say(f"Redis held {excerpt(found)}, which {why}: started fresh")
        elif found is not None:
            self.previous = found
            self.how, why = self._choose()
            if self.how != "resumed":
                level = logging.INFO if self.how == "rotated" else logging.WARNING
                self._say(f"session {found} {why}: started fresh, and it stands until that is saved", level)
            elif self.request.on_elsewhere == "raise" and (differs := self.request.elsewhere(self.record)):
                raise SessionElsewhere(
                    self.key, session_id=found, place=self.record.place, agent=self.record.agent, differs=differs
                )

    def _another_agent(self) -> str | None:
        """What is said of the ID that was found if it is recorded for another agent."""
        recorded, agent = self.record.agent, self.request.agent
        return f"is a session of {recorded}" if recorded and agent and recorded != agent else None

    def _choose(self) -> tuple[How, str]:
        """How to run on the session that was found, and why if not by resuming it."""
        record, settings = self.record, self.ops.settings
        if 0 < settings.give_up_after <= record.failures:
            return "gave_up", f"failed {record.failures} times in a row"
        if (limit := settings.max_turns) is not None and record.turns >= limit:
            return "rotated", f"has {record.turns} turns, and the limit is {limit}"
        if (limit := settings.max_lifetime_ms) is not None and self.claim.now_ms and record.started_ms:
            age_ms = self.claim.now_ms - record.started_ms
            if age_ms >= limit:
                return "rotated", f"began {duration(age_ms)} ago, and the limit is {duration(limit)}"
        if (limit := settings.max_context_tokens) is not None and (record.context_tokens or 0) >= limit:
            return "rotated", f"has {record.context_tokens} tokens of context, and the limit is {limit}"
        return "resumed", ""

    def _acquire(self) -> Flow[Lease]:
        deadline_s, pause_s = None, _POLL_S[0]
        while True:
            self.claimed = True
            found = yield Do(self.ops.acquire(self.key, self.claim.token))
            if isinstance(found, Lease):
                self.claim, self.record = found, found.record
                return found
            self.claimed = False
            now_s = time.monotonic()
            deadline_s = now_s + self.request.wait_ms / 1000 if deadline_s is None else deadline_s
            left_s = deadline_s - now_s
            if left_s <= 0:
                raise LeaseHeld(self.key, holder=found.holder, remaining_ms=found.remaining_ms)
            # Jitter, so that workers that wait for the same conversation don't ask at the same moments.
            yield Pause(min(pause_s * random.uniform(0.5, 1), left_s, found.remaining_ms / 1000))
            pause_s = min(pause_s * 1.5, _POLL_S[1])

    def _run(self, session_id: str | None) -> Flow[Turn[Any]]:
        self.ran, self.run = True, Run(session_id, self.claim if self.claimed else None)
        self.request.running[self.claim.token] = self
        try:
            turn = yield self.run
        finally:
            self.request.running.pop(self.claim.token, None)
            # An outage seen before the run may be over: a lease that was renewed meanwhile is to be released.
            self.away = self.away and not self.claimed
        if not isinstance(turn, Turn):
            _close(turn)
            raise InvalidTurn(f"run must return a redis_sessions.Turn, not {type(turn).__name__}")
        return turn

    def _turn(self) -> Turn[Any] | None:
        """What has come back from a run and is not being saved."""
        came_back = self.run.came_back if self.run is not None else None
        return came_back if isinstance(came_back, Turn) else None

    def _run_fresh(self) -> Flow[Turn[Any]]:
        """Run after a refusal. Raises what the run raises."""
        try:
            return (yield from self._run(None))
        except InvalidTurn:
            raise
        except Exception as error:
            yield from self._handle_failure(error, None)
            raise

    def _handle_failure(self, error: Exception, asked: str | None) -> Flow[None]:
        """Act on a failed run: return if a fresh run may follow, else raise."""
        judgement = self.request.judge(error)
        if not isinstance(judgement, Judgement):
            _close(judgement)
            name = getattr(self.request.judge, "__qualname__", None) or repr(self.request.judge)
            raise TypeError(
                f"judge {name} must return a redis_sessions.Judgement, not {type(judgement).__name__}"
            ) from error
        verdict = judgement.verdict
        if judgement.session_id and not self._objects(judgement.session_id):
            self.answered = judgement.session_id
        if verdict is Verdict.ok and self.answered:
            yield from self._save_or_say(self.answered, complete=True)
            raise error
        if verdict.refused:
            yield from self._reject(error, judgement, asked)
            return
        if verdict is Verdict.busy and asked is not None and not self.answered:
            raise SessionBusy(self.key, session_id=asked) from error
        self.undecided = asked is not None and verdict is Verdict.other and not judgement.cut_short
        if self.undecided and self.request.judge is judge_by_phrase and self.record.failures:
            log.warning(
                "conversation %r: session %s failed again, and no judge can say whether it is gone: pass agent= to resume",
                self.key,
                asked,
            )
        raise error

    def _reject(self, error: Exception, judgement: Judgement, asked: str | None) -> Flow[None]:
        """Drop a session that the agent refused: return if a fresh run may follow, else raise."""
        refused, self.answered = self.saved_early or asked, None
        mine = True
        if refused is not None:
            gone = asked is not None and judgement.verdict is Verdict.gone
            counters = [] if asked is None or (gone and self._has_moved()) else [RESUME_FAILURES]
            try:
                if self.claimed:
                    lease = self.claim._replace(session_id=refused)
                    written = yield Do(self.ops.reject(lease, self._counted_in_script(counters)))
                    mine = written.mine
                    counters = self._left(counters, written)
                else:
                    yield Do(self.ops.delete(self.key, refused))
                self.away = False
            except StoreUnavailable as outage:
                self.away = is_away(outage)
                if self.request.on_outage == "raise" and asked is not None and not judgement.turn_began:
                    raise outage from error
                self._say(f"{_describe(outage)}; session {refused} may be tried once more")
            for name in counters:
                yield from self._count(name)
        if asked is None or judgement.turn_began:
            raise error
        if not mine:
            self.claimed = False
            raise LeaseHeld(self.key) from error
        if not self.moved:
            self._say(f"session {asked} was refused ({judgement.verdict})", logging.INFO)

    def _has_moved(self) -> bool:
        """Whether a session that is gone here was made elsewhere, which is said."""
        differs = self.request.elsewhere(self.record, ever=True)
        if differs is not None:
            self.moved = True
            place = self.record.place
            share = "run its turns in that directory" if differs == "directory" else "let both use that home, as a volume"
            self._say(f"session {self.previous} is gone here: it was made elsewhere ({differs}): {place}; {share}")
        return self.moved

    def _keep(self, turn: Turn[Any]) -> Flow[ResumeResult[Any]]:
        given, gone = self._given(turn), turn.previous_gone
        if gone is None:
            gone = self.request.keeps_id and given is not None and given != self.previous
        if self.how == "resumed" and gone:
            self.how = "restarted"
            if not self._has_moved():
                self._say(f"session {self.previous} was gone, and the agent started another without saying so", logging.INFO)
                self.uncounted.append(RESUME_FAILURES)
        session_id = self._session_of(given)
        saved = False
        if session_id is not None:
            saved = yield from self._save_or_say(session_id, complete=turn.complete, context_tokens=turn.context_tokens)
        else:
            if not turn.session_id:
                self._say("the turn gave no session ID", logging.INFO)
            self.run = None
            self.uncounted += self._turn_counters()
            yield from self._count_rest()
        return ResumeResult(
            value=turn.value,
            session_id=session_id,
            how=self.how,
            previous=self.previous,
            saved=saved,
            session_changed=self.how == "resumed" and session_id != self.previous,
            reason="; ".join(self.reasons) or None,
            moved=self.moved,
            replicated=self.replicated,
        )

    def _session_of(self, given: str | None) -> str | None:
        """The session in which a turn has ended that gave this ID."""
        return given or self.answered or (self.previous if self.how == "resumed" else None)

    def _given(self, turn: Turn[Any]) -> str | None:
        """The session ID that a turn gave; None if no turn could resume it."""
        if not turn.session_id or self._objects(turn.session_id):
            return None
        return turn.session_id

    def _objects(self, session_id: str) -> bool:
        """Whether no turn could resume this ID, which is said."""
        if session_id == self.previous:  # as this turn shows
            return False
        why = self.request.objection(session_id)
        if why is not None:
            self._say(f"the turn gave {excerpt(session_id)} as its session, which {why}: not saved")
        return why is not None

    def _save_or_say(self, session_id: str, *, complete: bool, context_tokens: int | None = None) -> Flow[bool]:
        """Save the session ID that a turn ended with, and count the turn; whether it was saved. Says why not."""
        saved = False
        try:
            self.answered, self.run = session_id, None
            self.uncounted += self._turn_counters()
            saved = yield from self._save(session_id, complete=complete, context_tokens=context_tokens)
        except SessionStoreError as error:
            self._say_unsaved(session_id, error)
        except GeneratorExit:
            raise
        except BaseException:
            # Interrupted: once more, unless it had ended.
            if self.answered is not None:
                self.answered = None
                try:
                    yield from self._save(session_id, complete=complete, context_tokens=context_tokens)
                except SessionStoreError as error:
                    self._say_unsaved(session_id, error)
            raise
        self.answered = None
        if self.uncounted:
            yield from self._count_rest()
        return saved

    def _say_unsaved(self, session_id: str, error: SessionStoreError) -> None:
        self.away = is_away(error)
        lost = "may expire as if unused" if session_id == self.previous else "may never be resumed"
        # An outage or refusal that lasted from start to end was logged at its start.
        level = logging.INFO if self.warned and isinstance(error, StoreUnavailable) else logging.WARNING
        self._say(f"not saved: {error}; session {session_id} {lost}", level)

    def _save(self, session_id: str, *, complete: bool, context_tokens: int | None) -> Flow[bool]:
        if not self.request.lease:
            self._note_replicas((yield Do(self.ops.set(self.key, session_id))))
            self.away = False
            return True
        if not self.claimed:
            # The turn ran without a lease, since Redis was away. What another worker has saved or runs now takes precedence.
            found = yield Do(self.ops.acquire(self.key, self.claim.token))
            self.claimed, self.away = isinstance(found, Lease), False
            theirs = found.session_id if isinstance(found, Lease) else None
            if isinstance(found, Held) or (theirs and theirs != session_id and not self.request.objection(theirs)):
                self._say("not saved: while Redis was away, the conversation went on elsewhere or kept its old session")
                return False
        again, self.unsure = self.unsure, True
        op = self._saving(session_id, complete=complete, context_tokens=context_tokens, again=again)
        written = yield Do(op)
        # In this order: after an interrupt between two of them, what is left is sent again, and finds that it was done.
        self.uncounted = self._left(self.uncounted, written)
        self.answered = None
        self.claimed = self.unsure = False
        if not written.mine:
            self._say("not saved: another worker took the conversation over")
            return False
        self._note_replicas(written)
        if self.ops.compares_max_age():
            yield Do(self.ops.compare_max_age())
        return True

    def _note_replicas(self, written: Written) -> None:
        if self.ops.settings.replicas:
            self.replicated = written.lacking is None
        if written.lacking is not None:
            self._say(str(written.lacking))

    def _saving(
        self,
        session_id: str,
        *,
        complete: bool,
        context_tokens: int | None = None,
        keep_lease: bool = False,
        again: bool = False,
    ) -> Op[Written]:
        agent, place = self.request.agent, self.request.place
        if self.how == "resumed":
            agent = agent or self.record.agent
            if agent == self.record.agent and (place is None or self.record.was_in(place)):
                agent = place = None  # what the record has stays
            elif place is None:
                place = self.record.place
        return self.ops.save(
            self.claim,
            session_id,
            keep_lease=keep_lease,
            # What an early save, or an agent that gives the same ID again, has left of another session doesn't go on.
            continues=self.previous if self.how == "resumed" else self.previous and BEGINS,
            failures=Failures.reset if complete else Failures.add if self.undecided else Failures.keep,
            agent=agent,
            place=place,
            context_tokens=context_tokens,
            complete=complete,
            counters=() if keep_lease else self._counted_in_script(self.uncounted),
            compare=False,
            again=again,
        )

    def _finish(self) -> Flow[None]:
        """Save what the model has answered in, if that was not done; release the lease."""
        if self.run is not None and (turn := self._turn()) is not None:  # interrupted before it was saved
            self.run = None
            self.answered = self._session_of(self._given(turn))
            self.uncounted += [] if self.answered else self._turn_counters()
        if self.answered is not None:
            yield from self._save_or_say(self.answered, complete=False)
        if self.claimed:
            told = self.away or not self.ran  # of the save or the claim, which failed for the same reason
            try:
                released = yield from self._release()
                if not released.mine and not released.resent and self.ran:
                    log.error("conversation %r was taken over before its turn ended", self.key)
            except SessionStoreError as error:
                self.claimed, self.away = False, is_away(error)
                if not told:
                    log.warning("lease of %r was not released, it will expire: %s", self.key, error)
        if self.uncounted:
            yield from self._count_rest()

    def _release(self) -> Flow[Written]:
        again, self.unsure = self.unsure, True
        written: Written
        if self.undecided:
            written = yield Do(self.ops.fail(self.claim, again=again, once=self.away))
        else:
            counters = self._counted_in_script(self.uncounted)
            written = yield Do(self.ops.release(self.claim, counters, again=again, once=self.away))
            self.uncounted = self._left(self.uncounted, written)
        self.claimed = self.unsure = False
        return written

    def _turn_counters(self) -> list[str]:
        return _COUNTERS.get(self.how, [FRESH_STARTS])

    def _counted_in_script(self, names: list[str]) -> tuple[str, ...]:
        return tuple(names) if self.ops.counts_in_scripts else ()

    def _left(self, names: list[str], written: Written) -> list[str]:
        """Which counters are still to be incremented after a script that was to."""
        if not self.ops.counts_in_scripts:
            return names
        if not written.mine:
            # What may have been counted is not counted again: losing one is better.
            return [] if written.resent else names
        if written.uncounted:
            log.warning("%s: %d of these were not counted: see redis-sessions doctor", ", ".join(names), written.uncounted)
        return []

    def _count_rest(self) -> Flow[None]:
        """Count what no script will: a lease that is still held counts as it is released."""
        if self.claimed and self.ops.counts_in_scripts:
            return
        names, self.uncounted = self.uncounted, []
        for name in names:
            yield from self._count(name)

    def _count(self, name: str) -> Flow[None]:
        if self.away:
            return
        try:
            yield Do(self.ops.increment(name))  # sent only once, so losing it doesn't show an outage
        except SessionStoreError as error:
            log.log(logging.INFO if self.warned else logging.WARNING, "%s was not counted: %s", name, error)

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
