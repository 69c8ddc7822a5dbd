"""Runs the resume flow: two drivers, sync and async, and the renewal of the turn's lease while the agent runs.

`leased` and `aleased` hold and renew a lease around the single steps of a caller.

A forked child that unwinds through here neither renews nor releases its parent's lease.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
import weakref
from _thread import LockType, allocate_lock, get_ident, start_new_thread
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar

from redis_sessions.errors import LeaseHeld, SessionStoreError
from redis_sessions.forks import forgetful, process_id
from redis_sessions.operations.command import Op
from redis_sessions.operations.conversation import Held, Lease, Operations, new_token
from redis_sessions.operations.text import duration
from redis_sessions.resume.flow import Do, Flow, Pause, Run
from redis_sessions.resume.turn import InvalidTurn, ResumeResult

log = logging.getLogger("redis_sessions")

# How long the end of a store waits for a thread that was just started, on a machine that is busy.
_BEGIN_S = 1.0
_NOT_RELEASED = "lease of %r was not released, it will expire: %s"

T = TypeVar("T")
V = TypeVar("V")


# Drives one operation to its result, as a store does on its client.
Execute: TypeAlias = Callable[[Op[Any]], Any]
AsyncExecute: TypeAlias = Callable[[Op[Any]], Coroutine[Any, Any, Any]]


def _check_run(run: object) -> None:
    """Raise InvalidTurn for what can't be called: it would count as a failure of the agent."""
    if not callable(run):
        raise InvalidTurn(f"run must be a function that takes a session ID or None, not {type(run).__name__}")


def drive(
    ops: Operations, renewer: LeaseRenewer, flow: Flow[ResumeResult[V]], run: Callable[[str | None], Any]
) -> ResumeResult[V]:
    """Drive a resume flow to its result. Raises what the flow raises."""
    _check_run(run)
    parent, reply, error = process_id(), None, None
    while True:
        try:
            while True:
                try:
                    step = flow.send(reply) if error is None else flow.throw(error)
                except StopIteration as done:
                    result: ResumeResult[V] = done.value
                    return result
                reply = error = None
                try:
                    match step:
                        case Do():
                            reply = renewer.execute(step.op)
                        case Run():
                            with renewer.renewing(ops, step.lease) if step.lease else nullcontext():
                                reply = step.came_back = run(step.session_id)
                        case Pause():
                            time.sleep(step.seconds)
                except BaseException as raised:
                    if process_id() != parent:
                        raise
                    error = raised
        except BaseException as raised:
            # By the flow, which has ended then, or by a signal handler between two steps.
            if getattr(flow, "gi_frame", None) is None or process_id() != parent:
                raise
            error = raised


async def adrive(
    ops: Operations,
    execute: AsyncExecute,
    flow: Flow[ResumeResult[V]],
    run: Callable[[str | None], Awaitable[Any]],
) -> ResumeResult[V]:
    """Same as drive, for asyncio. A cancellation takes effect once the current operation on Redis has ended."""
    _check_run(run)
    parent = process_id()
    try:
        step = next(flow)
        while True:
            reply: Any = None
            try:
                match step:
                    case Do():
                        reply = await _uncancelled(execute(step.op))
                    case Run():
                        async with _AsyncRenewal(ops, execute, step.lease) if step.lease else nullcontext():
                            reply = step.came_back = await _awaitable(run(step.session_id))
                    case Pause():
                        await asyncio.sleep(step.seconds)
            except BaseException as error:
                if process_id() != parent:
                    raise
                step = flow.throw(error)
            else:
                step = flow.send(reply)
    except StopIteration as done:
        result: ResumeResult[V] = done.value
        return result


def _awaitable(given: Awaitable[T]) -> Awaitable[T]:
    if isinstance(given, Awaitable):
        return given
    raise InvalidTurn(f"run must be async and return a redis_sessions.Turn; it returned {type(given).__name__} at once")


async def _uncancelled(step: Coroutine[Any, Any, T]) -> T:
    """Await a step to its end, then raise the cancellation that came meanwhile: what it does to the lease must be known."""
    outcome: _Uncancellable[T] = _Uncancellable()
    task = asyncio.get_running_loop().create_task(_settle(step, outcome))  # noqa: F841 - a loop holds its tasks weakly
    return await outcome


async def _settle(step: Coroutine[Any, Any, T], outcome: asyncio.Future[T]) -> None:
    try:
        outcome.set_result(await step)
    except BaseException as error:  # noqa: BLE001 - raised where the outcome is awaited
        outcome.set_exception(error)


class _Uncancellable(asyncio.Future[T]):
    """A future that can't be cancelled: the task that awaits it is, once it has ended."""

    def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002 - asyncio's signature
        return False


class LeaseRenewer:
    """Renews the leases of a store's running turns, each every third of its time: `with renewer.renewing(lease): …`.

    One thread waits for the next lease that is due. The first turn starts it, and it ends when the renewer is closed or
    dropped: while no turn runs it looks every third of a lease, so that no turn has to start or wake it. When it renews a
    lease, it starts another one to wait in its place, so that a server that hangs delays no other conversation. A forked
    child starts with no leases and no thread.

    Threads are started by `_thread`: a signal handler that raises within `threading.Thread.start` becomes a RuntimeError
    (python/cpython #78667). They are not joined, and don't keep the process from ending: a renewal that hangs must delay
    neither a turn's result nor the end of the process.
    """

    def __init__(self, execute: Execute, lease_ms: int) -> None:
        self.execute = execute
        self._interval_s = lease_ms / 3000
        self.forget()
        _renewers.add(self)
        forgetful.add(self)

    def forget(self) -> None:
        """Forget the leases, the thread, and the lock that another thread may have held as the process forked."""
        self._lock = threading.RLock()  # a signal handler may run a turn, too
        # All wait for the same time, so the one that was put in last is due last.
        self._due: OrderedDict[str, weakref.ref[_Renewal]] = OrderedDict()
        self._waiting: int | None = None  # the thread that waits for the next lease
        self._begun = allocate_lock()  # held until the thread that was started last has begun
        self._closed = False
        self._closing: SimpleQueue[None] = SimpleQueue()

    def close(self) -> None:
        """Let the thread end, and start no other. Leases are renewed no more."""
        process_id()
        with self._lock:
            self._closed = True
        self._closing.put(None)
        if self._begun.acquire(timeout=_BEGIN_S):
            self._begun.release()

    def renewing(self, ops: Operations, lease: Lease) -> _Renewal:
        """A context manager that keeps `lease` renewed."""
        return _Renewal(self, ops, lease)

    def add(self, renewal: _Renewal) -> None:
        process_id()
        with self._lock:
            self._put(renewal)
            error = self._start() if self._waiting is None else None
        if error is not None:
            log.warning(
                "lease of %r is not renewed, as no thread can be started (%s), so another worker may take it over after %s: "
                "raise the limit of threads (ulimit -u, or pids_limit of the container)",
                renewal.lease.key,
                error,
                duration(renewal.ops.settings.lease_ms),
            )

    def remove(self, token: str) -> None:
        process_id()
        with self._lock:
            self._due.pop(token, None)

    def _put(self, renewal: _Renewal) -> None:
        renewal.due_s = time.monotonic() + self._interval_s
        self._due[renewal.lease.token] = weakref.ref(renewal)

    def _start(self) -> RuntimeError | None:
        """Start the thread that waits next; the error if none can be started now, which the next turn tries again."""
        if self._closed:
            return None
        begun = allocate_lock()
        begun.acquire()
        # If a signal handler raises before this is noted, the thread notes it itself.
        try:
            self._waiting = start_new_thread(_renew_all, (weakref.ref(self), self._closing, begun))
        except RuntimeError as error:
            return error
        self._begun = begun
        return None

    def takes(self, thread: int) -> bool:
        """Whether this thread, which was just started, is the one that is to wait."""
        with self._lock:
            self._waiting = self._waiting or thread
            return self._waiting == thread

    def end(self, thread: int) -> None:
        """Note that this thread waits no more."""
        with self._lock:
            if self._waiting == thread:
                self._waiting = None

    def renew_next(self, thread: int) -> float | None:
        """Renew the first lease if it is due: seconds until the next look, None if another thread waits now."""
        with self._lock:
            if not self._due:
                return self._interval_s
            token, reference = next(iter(self._due.items()))
            renewal = reference()
            if renewal is not None and (left_s := renewal.due_s - time.monotonic()) > 0:
                return left_s
            del self._due[token]
            if renewal is None:
                return 0.0
            if renewal.over:
                self._put(renewal)  # the step that is to end it may fail
                return 0.0
            self._start()  # if no thread can be started now, the others wait for this renewal
        outcome: object
        try:
            outcome = self.execute(renewal.ops.renew(renewal.lease))
        except Exception as error:  # noqa: BLE001 - whatever it was, the lease is tried again in a third of its time
            outcome = error
        go_on = _log_renewal(renewal.lease, outcome, over=renewal.over)
        with self._lock:
            # The run that follows a refused one has the same token, and its entry must stand.
            if go_on and not renewal.left:
                self._put(renewal)
            return 0.0 if self._waiting == thread else None


def _renew_all(reference: weakref.ref[LeaseRenewer], closing: SimpleQueue[None], begun: LockType) -> None:
    """What the thread does. Between two looks it holds no renewer, so that one that is dropped ends it."""
    begun.release()
    thread = get_ident()
    renewer = reference()
    try:
        if renewer is None or not renewer.takes(thread):
            return
        while renewer is not None and (pause_s := renewer.renew_next(thread)) is not None:
            del renewer
            with suppress(Empty):
                closing.get(timeout=pause_s)
                return
            renewer = reference()
    finally:
        if (renewer := reference()) is not None:
            renewer.end(thread)


_renewers: weakref.WeakSet[LeaseRenewer] = weakref.WeakSet()


def _close_all() -> None:
    for renewer in list(_renewers):
        renewer.close()


# A thread that begins while the interpreter shuts down crashes the process, before CPython 3.11.6 (python/cpython #108987).
atexit.register(_close_all)


class _Renewal:
    """The renewals of one turn's lease. `due_s`: when the next one is due.

    `over`: the turn has ended, or a step that is to end the lease is running or was carried out; none is made then.
    `left`: the turn has ended for good.

    Only the turn holds a reference to it: if a signal comes while the block is being entered or left, nobody may be
    left to say that the turn is over.
    """

    __slots__ = ("__weakref__", "_renewer", "due_s", "lease", "left", "ops", "over")

    def __init__(self, renewer: LeaseRenewer, ops: Operations, lease: Lease) -> None:
        self.ops = ops
        self.lease = lease
        self.over = self.left = False
        self.due_s = 0.0
        self._renewer = renewer

    def __enter__(self) -> None:
        self._renewer.add(self)

    def __exit__(self, *_: object) -> None:
        self.over = self.left = True
        self._renewer.remove(self.lease.token)

    def end(self) -> None:
        self.over = True


class _AsyncRenewal:
    """Same as _Renewal, for asyncio: a timer that starts a task for each renewal."""

    def __init__(self, ops: Operations, execute: AsyncExecute, lease: Lease) -> None:
        self._ops = ops
        self._execute = execute
        self._lease = lease
        self._interval_s = ops.settings.lease_ms / 3000
        self.over = False
        self._left = False
        # When the next renewal is due, by the loop's clock; None while one runs, and once it was said to be late.
        self._due_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._set_timer()

    async def __aexit__(self, *_: object) -> None:
        # Checked after each renewal too: a cancellation that comes together with a reply can get lost in the client.
        self._left = True
        self.end()
        self._timer.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def _set_timer(self) -> None:
        self._due_s = self._loop.time() + self._interval_s
        self._timer = self._loop.call_at(self._due_s, self._start)

    def end(self) -> None:
        self._report_lateness()
        self.over = True

    def _report_lateness(self) -> None:
        """Log that the lease has ended because the loop did not get to its renewal."""
        late_s = 0.0 if self._due_s is None or self.over else self._loop.time() - self._due_s
        if late_s > 2 * self._interval_s:
            self._due_s = None
            log.error(
                "the event loop was blocked for %s while conversation %r ran, so its lease ended and another worker could "
                "run it too: run what blocks in a thread, by asyncio.to_thread",
                duration(round(late_s * 1000)),
                self._lease.key,
            )

    def _start(self) -> None:
        self._report_lateness()
        if self.over:
            self._set_timer()  # the step that is to end the lease may fail
            return
        self._due_s = None
        self._task = self._loop.create_task(self._renew())

    async def _renew(self) -> None:
        outcome: object
        try:
            outcome = await self._execute(self._ops.renew(self._lease))
        except Exception as error:  # noqa: BLE001 - whatever it was, the lease is tried again in a third of its time
            outcome = error
        if _log_renewal(self._lease, outcome, over=self.over) and not self._left:
            self._set_timer()


def _log_renewal(lease: Lease, outcome: object, *, over: bool) -> bool:
    """Log a renewal that failed, by what it returned or raised; whether another one is to follow."""
    if outcome is True or over:
        return True
    if outcome is False:
        log.error("conversation %r was taken over while its turn runs on", lease.key)
        return False
    log.warning(
        "lease of %r was not renewed: %s", lease.key, outcome if isinstance(outcome, SessionStoreError) else repr(outcome)
    )
    return True


# The renewals of the leases that blocks hold, by token. What ends a lease within its block calls `end`.
Renewals: TypeAlias = MutableMapping[str, "_Renewal | _AsyncRenewal"]


def _claim(ops: Operations, claim: Lease) -> Op[Lease]:
    found = yield from ops.acquire(claim.key, claim.token)
    if isinstance(found, Held):
        raise LeaseHeld(found.key, holder=found.holder, remaining_ms=found.remaining_ms)
    return found


def _leave(execute: Execute, ops: Operations, lease: Lease) -> None:
    try:
        execute(ops.release(lease))
    except SessionStoreError as error:
        log.warning(_NOT_RELEASED, lease.key, error)


async def _aleave(execute: AsyncExecute, ops: Operations, lease: Lease) -> None:
    try:
        await execute(ops.release(lease))
    except SessionStoreError as error:
        log.warning(_NOT_RELEASED, lease.key, error)


@contextmanager
def leased(renewer: LeaseRenewer, ops: Operations, renewals: Renewals, key: str) -> Iterator[Lease]:
    """Hold the lease of a conversation for a block, renewed, and release it at the end if it was not. Raises LeaseHeld."""
    # Its token is chosen here, so that a claim that was interrupted before its reply came is released as well.
    claim, held, parent = Lease(key, new_token()), True, process_id()
    try:
        try:
            lease = renewer.execute(_claim(ops, claim))
        except SessionStoreError:
            held = False
            raise
        renewals[lease.token] = renewal = renewer.renewing(ops, lease)
        with renewal:
            try:
                yield lease
            finally:
                held = not renewal.over
    finally:
        if held and process_id() == parent:
            _leave(renewer.execute, ops, claim)


@asynccontextmanager
async def aleased(execute: AsyncExecute, ops: Operations, renewals: Renewals, key: str) -> AsyncIterator[Lease]:
    """Same as leased, for asyncio. A cancellation takes effect once the current operation on Redis has ended."""
    claim, held, parent = Lease(key, new_token()), True, process_id()
    try:
        try:
            lease = await _uncancelled(execute(_claim(ops, claim)))
        except SessionStoreError:
            held = False
            raise
        renewals[lease.token] = renewal = _AsyncRenewal(ops, execute, lease)
        async with renewal:
            try:
                yield lease
            finally:
                held = not renewal.over
    finally:
        if held and process_id() == parent:
            await _uncancelled(_aleave(execute, ops, claim))
