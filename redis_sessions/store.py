"""SessionStore and AsyncSessionStore: each method passes an operation to the client. No logic here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar
from weakref import WeakSet, WeakValueDictionary

from redis_sessions.client.connect import AsyncClient, SyncClient, aconnect, callers_link, connect, link, sentinels
from redis_sessions.client.execute import Link, arun, run
from redis_sessions.client.pool import PerProcess
from redis_sessions.client.url import parse
from redis_sessions.doctor.findings import ClientFacts, Diagnosis
from redis_sessions.errors import NotReplicated, SessionStoreError
from redis_sessions.keys import RESUME_FAILURES, check_session_id
from redis_sessions.legacy.file import Writer, read
from redis_sessions.legacy.shape import Shape, as_shape
from redis_sessions.legacy.transfer import ExportResult, ImportResult, export_entries, import_entries
from redis_sessions.operations.command import Op
from redis_sessions.operations.conversation import Held, Lease, Operations, Peek, Place, checked_token
from redis_sessions.operations.report import Report, live_session_ids, report
from redis_sessions.operations.retime import RetimeResult, retime
from redis_sessions.operations.scan import (
    LeaseRow,
    Page,
    Progress,
    Scan,
    SessionRow,
    agreed,
    lease_rows,
    near_namespaces,
    session_rows,
)
from redis_sessions.resume.flow import resume
from redis_sessions.resume.runner import LeaseRenewer, adrive, aleased, drive, leased
from redis_sessions.resume.turn import Judge, Request, ResumeResult, Turn, TurnStart, judge_by_phrase
from redis_sessions.settings import StoreSettings

if TYPE_CHECKING:
    from redis_sessions.agents import Agent

log = logging.getLogger("redis_sessions")

T = TypeVar("T")
V = TypeVar("V")
C = TypeVar("C")
K = TypeVar("K")
R = TypeVar("R")


class Rows(Iterator[R]):
    """The rows of a scan, for one `for`.

    Attributes:
        exact: None before its end, then whether no row can be missing. It may be if cluster slots move or the server changes
            meanwhile, or if it can't be proven that one server has all keys: INFO is denied, or a proxy stands in between.
    """

    def __init__(self, scan: Scan, rows: Iterator[R]) -> None:
        self._scan, self._found = scan, rows

    @property
    def exact(self) -> bool | None:
        return self._scan.exact

    def __iter__(self) -> Iterator[R]:  # noqa: PYI034 - itself would cost a call for each row
        return self._found

    def __next__(self) -> R:
        return next(self._found)


class AsyncRows(AsyncIterator[R]):
    """Same as Rows, for one `async for`."""

    def __init__(self, scan: Scan, rows: AsyncIterator[R]) -> None:
        self._scan, self._found = scan, rows

    @property
    def exact(self) -> bool | None:
        return self._scan.exact

    async def __anext__(self) -> R:
        return await anext(self._found)


# Around a step that ends no renewal.
_UNRENEWED: Final = nullcontext()


@contextmanager
def _ended(renewal: Any) -> Iterator[None]:
    renewal.end()
    try:
        yield
    except NotReplicated:  # saved, and the lease released
        raise
    except BaseException:
        renewal.over = False
        raise


def _runtime(agent: str | Agent) -> Agent:
    from redis_sessions.agents import Agent, get_agent  # noqa: PLC0415 - a runtime is read when it is asked for

    return agent if isinstance(agent, Agent) else get_agent(agent)


def _form_of(agent: str | Agent | None) -> Callable[[str], bool] | None:
    """Whether a text can be a session ID of this runtime."""
    return None if agent is None else _runtime(agent).can_be


class BaseStore(Generic[C]):
    """What both flavors of the store share."""

    _awaits: bool
    _run: Callable[[Op[Any]], Any]

    def __init__(
        self,
        client: C | PerProcess[C],
        settings: StoreSettings | None = None,
        *,
        _link: Link | None = None,
        _closed: WeakSet[Any] | None = None,
        _renewer: LeaseRenewer | None = None,
    ) -> None:
        """A store over your own redis-py client: its own retries apply, to counters too, and what is risky in it is logged.

        Args:
            client: a redis.Redis or redis.RedisCluster; for AsyncSessionStore, one of redis.asyncio. `from_url` builds one
                that is safe.
            settings: how the store behaves; default: StoreSettings().

        Raises TypeError for anything else, and InvalidSettings for `replicas` where there can be none: on fakeredis.
        """
        self._shared = client
        self._client_of: Callable[[], C] = client.get if isinstance(client, PerProcess) else lambda: client
        self.settings = _checked(settings)
        self._link = _link or callers_link(client, self.settings, awaits=self._awaits)
        together = self._link.cluster or self._link.emulated
        counts, reply_s = not self._link.cluster, self._link.reply_s
        self._ops = Operations(self.settings, counts_in_scripts=counts, together=together, reply_s=reply_s)
        # Where it was closed: an async store is closed in each event loop by itself.
        self._closed = WeakSet() if _closed is None else _closed
        # Starts no thread before a sync turn runs.
        self._renewer: LeaseRenewer = _renewer or LeaseRenewer(self._run, self.settings.lease_ms)
        self._running: dict[str, Any] = {}  # the turns that run now, by the tokens of their claims
        self._renewals: WeakValueDictionary[str, Any] = WeakValueDictionary()
        # Limits that a turn without a lease does not keep, until that was said.
        self._unkept_limits = self.settings.limits

    def for_namespace(self, namespace: str) -> Self:
        """A store of another namespace over the same client; closing either closes both. Raises InvalidSettings."""
        settings = self.settings.model_copy(update={"namespace": namespace})
        return type(self)(self._shared, settings, _link=self._link, _closed=self._closed, _renewer=self._renewer)

    @property
    def client(self) -> C:
        """The redis-py client underneath; of a store from a URL, that of this process and event loop."""
        return self._client_of()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._link.address!r}, namespace={self.settings.namespace!r})"

    def _ending(self, lease: Lease) -> AbstractContextManager[None]:
        """Let a step of the block that holds this lease end it: from then on it isn't renewed, unless the step fails."""
        renewal = self._renewals.get(getattr(lease, "token", "")) if self._renewals else None
        return _ended(renewal) if renewal else _UNRENEWED

    def _save_early(self, key: str, session_id: str) -> Op[bool]:
        self._ops.keys.session_id(key)  # refuse a bad key, for which no turn can be running
        check_session_id(key, session_id)
        turns = self._turns_of(key)
        if len(turns) > 1:
            log.warning(
                "conversation %r runs %d times on this store, and which of the runs began session %s is not known: "
                "it is not saved before its turn has ended",
                key,
                len(turns),
                session_id,
            )
        return (yield from turns[0].save_early(session_id)) if len(turns) == 1 else False

    def _turns_of(self, key: str) -> list[Any]:
        return [turn for turn in list(self._running.values()) if turn.key == key]

    def running_turn(self, key: str) -> TurnStart | None:
        """How the turn of a conversation that is running in `resume` on this store was started; None if none is.

        For `run`, which is given only the session to resume: a fresh one may hand over a summary of the previous one. If it
        runs several times, as after it was taken over, it is the turn that was started last.
        """
        turns = self._turns_of(key)
        return TurnStart(turns[-1].how, turns[-1].previous) if turns else None

    def _request(
        self,
        key: str,
        judge: Judge | None,
        agent: str | Agent | None,
        accepts: Callable[[str], bool] | None,
        **options: Any,
    ) -> Request:
        if self._unkept_limits and not options["lease"]:
            limits = ", ".join(self._unkept_limits)
            log.warning("a turn without a lease keeps no record, and so counts for no limit: %s", limits)
            self._unkept_limits = []
        if agent is not None:
            runtime = _runtime(agent)
            judge, accepts = judge or runtime.judge, accepts or runtime.can_be
            options |= {"agent": runtime.sessions_of or runtime.name, "keeps_id": runtime.keeps_id}
            options |= {"bound_to": runtime.bound_to, "once_bound_to": runtime.once_bound_to}
        return Request(key, judge or judge_by_phrase, accepts=accepts, running=self._running, **options)

    def _check_open(self, where: object) -> None:
        if where in self._closed:
            raise SessionStoreError("this store was closed", remedy="make a new one, or close it later")


class SessionStore(BaseStore[SyncClient]):
    """Session IDs of conversations in Redis, shared by any number of threads and processes.

    `SessionStore.from_url("redis://127.0.0.1:6379/0")` makes one; used in a `with`, it closes its connections at the end.

    Every method that talks to Redis may raise StoreUnavailable (AccessDenied and CommandRefused are), InvalidKey for a key
    that is not 1 to 512 bytes of UTF-8, and CorruptValue if a key of the store holds what this package never writes. All
    methods that take a Lease raise TypeError for anything else, including a Held.

    Attributes:
        client: the redis-py client underneath.
        settings: how the store behaves.
    """

    _awaits = False

    @classmethod
    def from_url(cls, url: str, settings: StoreSettings | None = None, *, password: str | None = None) -> Self:
        """A store over a safe client, which connects at its first operation.

        Args:
            url: `redis://user:password@host:6379/0`, `rediss://…` (TLS), `unix:///path?db=0`,
                `redis+sentinel://h1:p,h2:p/SERVICE/DB`, `redis+cluster://h1:p,h2:p`, the last two also as `rediss+…`. User,
                password and path are percent-escaped. With TLS, `?ssl_ca_certs=…&ssl_certfile=…&ssl_keyfile=…` name PEM
                files; certificate and host name are always checked.
            settings: how the store behaves; default: StoreSettings().
            password: that of the URL's user, to keep the two apart; the URL must not have one then.

        Raises:
            InvalidSettings: the URL is None or invalid, or a file that it names can't be read.
            TypeError: the settings are not a StoreSettings.
        """
        checked, target = _checked(settings), parse(url, password)
        return cls(connect(target, checked), checked, _link=link(target, checked))

    def get(self, key: str) -> str | None:
        """The live session ID of a conversation, None if there is none. Doesn't extend its TTL.

        If the key holds anything else, raises InvalidSessionID, or CorruptValue if that is not a string; both name the key.
        """
        return self._run(self._ops.get(key))

    def peek(self, key: str) -> Peek | None:
        """The live session ID, how long it has left, and its record, in one round trip; None if there is none.

        Raises InvalidSessionID and CorruptValue, the same as `get`.
        """
        return self._run(self._ops.peek(key))

    def set(self, key: str, session_id: str) -> None:
        """Save a session ID with a new TTL, even if it is the same ID. Ignores leases.

        Raises InvalidSessionID, and NotReplicated if fewer replicas have it than the settings ask for.
        """
        self._run(self._ops.acknowledged(self._ops.set(key, session_id)))

    def delete(self, key: str, session_id: str | None = None) -> bool:
        """Delete a conversation's session ID, or only that one; whether this call did (a lost reply may make it False).

        Raises InvalidSessionID for an invalid `session_id`.
        """
        return self._run(self._ops.delete(key, session_id))

    def acquire(self, key: str, token: str | None = None) -> Lease | Held:
        """Claim a conversation for `lease_ms`: a Lease with the live session ID, or a Held with its holder. Never waits.

        `token` repeats an earlier claim whose outcome is unknown; without it the claim is a new one. Raises TypeError if it
        is not a str, and InvalidSettings unless it has 1 to 200 printable ASCII characters.
        """
        return self._run(self._ops.acquire(key, None if token is None else checked_token(token)))

    def lease(self, key: str) -> AbstractContextManager[Lease]:
        """Hold a conversation's lease for a block: `with store.lease(key) as lease: …`, for turns that `resume` doesn't fit.

        The Lease has the live session ID. It is renewed meanwhile, and released at the end unless the block has ended it by
        `save`, `fail` or `release`. Raises LeaseHeld if another worker has the conversation.
        """
        return leased(self._renewer, self._ops, self._renewals, key)

    def renew(self, lease: Lease) -> bool:
        """Renew a lease for another `lease_ms`; False if it was released or taken over."""
        return self._run(self._ops.renew(lease))

    def save(self, lease: Lease, session_id: str) -> bool:
        """Save a session ID and release the lease; False if it was released or taken over.

        Raises InvalidSessionID, and NotReplicated if fewer replicas have it than the settings ask for; the lease is released
        then, too.
        """
        with self._ending(lease):
            return self._run(self._ops.acknowledged(self._ops.save(lease, session_id)))

    def reject(self, lease: Lease) -> bool:
        """Delete the session ID that this lease found, if it is still there; False if the lease was taken over."""
        return self._run(self._ops.reject(lease)).mine

    def fail(self, lease: Lease) -> bool:
        """Count an undecided failure of the session that this lease found, and release the lease; False if it was lost."""
        with self._ending(lease):
            return self._run(self._ops.fail(lease)).mine

    def release(self, lease: Lease) -> bool:
        """Release a lease without saving; False if it was not held any more."""
        with self._ending(lease):
            return self._run(self._ops.release(lease)).mine

    def break_lease(self, key: str) -> Held | None:
        """Take the lease away from the worker that has the conversation, so that it is free: what was held, or None.

        The run that had it goes on, is told "taken over" by its next renewal, and can't save. Takes two round trips.
        """
        return self._run(self._ops.break_lease(key))

    def increment_resume_failures(self) -> int:
        """Count one refused resume; the new total. Never sent twice: a lost reply may lose one. Raises CorruptValue."""
        return self._run(self._ops.increment(RESUME_FAILURES))

    def resume_failures_total(self) -> int:
        """How many resumes were refused. Raises CorruptValue if the counter is not an integer."""
        return self._run(self._ops.counter(RESUME_FAILURES))

    def counters(self) -> dict[str, int | None]:
        """Every counter of redis_sessions.keys.COUNTERS by its name; None for one that is not an integer."""
        return self._run(self._ops.counters())

    def report(self, progress: Progress | None = None, *, records: bool = False) -> Report:
        """Scan all session keys and report their state. Deletes nothing; memory is bounded by the page.

        `progress(done, about)` is called after every page, both in keys of the whole database. With `records` the same scan
        also reads what is known of each session, which takes longer. Raises InexactScan where a proxy refuses a scan.
        """
        return self._run(report(self.settings, progress, records=records))

    def sessions(self, *, records: bool = True) -> Rows[SessionRow]:
        """Every live session, a page at a time; one may come twice, and invalid keys are left out.

        `records=False` leaves out what is known of them besides ID and times, and takes half the time.
        """
        return self._rows(Scan(self.settings, records=records), session_rows)

    def leases(self) -> Rows[LeaseRow]:
        """Every conversation that a worker runs now, a page at a time; one may come twice."""
        return self._rows(Scan(self.settings, leases=True), lease_rows)

    def near_namespaces(self) -> tuple[str, ...]:
        """Namespaces on this server, those with similar names first; none if this one has keys.

        Looks at 20 pages of a scan at most. Raises InexactScan where a proxy refuses it.
        """
        return self._run(near_namespaces(self.settings))

    def live_session_ids(self) -> frozenset[str]:
        """The session IDs of all keys, for a program that deletes other transcripts; IDs of running turns are not included.

        Raises InexactScan if the scan may have missed any.
        """
        return self._run(live_session_ids(self.settings))

    def import_legacy(
        self,
        path: str | Path,
        *,
        shape: Shape | str | None = None,
        agent: str | Agent | None = None,
        assume_used_at: Literal["mtime"] | int | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> ImportResult:
        """Import a sessions.json: what was used within the max age, with its remaining TTL.

        Live session IDs in Redis are kept as they are, so it can be run again: that brings back only what was deleted or
        refused meanwhile. `redis-sessions docs moving` lists the outcome for each entry.

        Args:
            path: the file.
            shape: of another tool's file, or the name of a known one, such as "openclaw"; default: that of a sessions.json.
            agent: the runtime, or its name, whose IDs these are; others are rejected.
            assume_used_at: time of last use of entries that have none: "mtime" for the file's, or milliseconds since 1970;
                with None, bare IDs and records of a sessions.json count as expired, and others are rejected.
            dry_run: write nothing.
            progress: called with the number of entries done and the total.

        Raises:
            LegacyFileError: the file can't be read, or has another shape; nothing was written.
            InvalidSettings: `assume_used_at` is not such a time, or no shape or runtime has that name.
            InexactScan: a proxy that refuses to say what is behind it; nothing was written.
        """
        legacy, accepts = read(path, as_shape(shape)), _form_of(agent)
        return self._run(import_entries(self._ops, legacy, assume_used_at, progress, accepts=accepts, dry_run=dry_run))

    def export(self, path: str | Path, progress: Progress | None = None) -> ExportResult:
        """Write every live session to a sessions.json: whole or not at all, mode 0600. `progress` is as for `report`.

        Raises FileNotWritten, InexactScan where a proxy refuses a scan.
        """
        with Writer(path) as writer:
            return self._run(export_entries(self.settings, writer.add, progress))

    def doctor(self, agent: str | None = None, progress: Progress | None = None) -> Diagnosis:
        """Check the server, the connection and the keys, and report what is wrong; changes nothing.

        Args:
            agent: name of the runtime whose sessions these are, to compare the max age with.
            progress: as for `report`.

        Raises InvalidSettings if no runtime has that name.
        """
        from redis_sessions.doctor.examine import ask_quorum, examine  # noqa: PLC0415 - called by few, and slow to import

        quorums = [run(sentinel, ask_quorum(service)) for sentinel, service in sentinels(self.client)]
        client = ClientFacts(self._link.tls, self._link.risks)
        return self._run(examine(self.settings, client, quorums, agent, progress))

    def retime(self, max_age_ms: int, *, dry_run: bool = False, progress: Progress | None = None) -> RetimeResult:
        """Set the max age of the namespace, and apply it to the sessions that are there. Run twice it changes nothing more.

        TTLs are only shortened, or set where a key had none; keys that don't hold a session ID are never touched.

        Args:
            max_age_ms: milliseconds. From then on, a worker with another max age is warned at its first save.
            dry_run: change nothing.
            progress: as for `report`.

        Raises InvalidSettings for an invalid `max_age_ms`, InexactScan where a proxy refuses a scan.
        """
        settings = self.settings.model_copy(update={"session_max_age_ms": max_age_ms})
        return self._run(retime(settings, progress, dry_run=dry_run))

    def resume(
        self,
        key: str,
        run: Callable[[str | None], Turn[V]],
        *,
        agent: str | Agent | None = None,
        judge: Judge | None = None,
        accepts: Callable[[str], bool] | None = None,
        wait_ms: int = 0,
        lease: bool = True,
        on_outage: Literal["run", "raise"] = "run",
        place: Place | None = None,
        on_elsewhere: Literal["try", "raise"] = "try",
    ) -> ResumeResult[V]:
        """Run one turn of a conversation: resume its live session, or start fresh.

        - A turn that succeeds is saved with a new TTL; one that names no session keeps the one it resumed.
        - If the agent refuses the resume (`judge` says gone, invalid_id or unusable), the ID is deleted and the refusal
          counted; then `run` is called once more, with None, unless the turn had begun.
        - Any other failure leaves the ID as it is. After `give_up_after` of them in a row that nobody could decide, the next
          turn runs fresh, and the old ID stands until that has been saved. The same is done with a session that has reached
          one of the settings' limits, such as `max_turns`.
        - A session in which the model has answered is real: its ID is saved even if the turn then fails or is cut short. The
          judge says so, or `run` by `save_early`. Before that, a run that fails saves nothing.
        - A turn that ran is never lost to an error of Redis: it is returned, with `saved=False` and the `reason`.

        Args:
            key: the conversation.
            run: runs the agent on a session ID, or fresh on None; returns a Turn or raises.
            agent: the runtime, by its name ("claude", "codex", …) or as an `redis_sessions.agents.Agent`: how it says that a
                session is gone, and what its IDs look like.
            judge: reads what `run` raised; default: the agent's, and without an agent one that knows only Claude Code's
                "No conversation found".
            accepts: says whether an ID can be one of the agent's; any other is neither resumed nor saved. Default: the
                agent's, and without an agent all are accepted.
            wait_ms: how long to wait for a conversation that another worker runs; default: 0, LeaseHeld is raised at once.
            lease: whether to keep all other workers out meanwhile. With False two may run the conversation at once,
                neither notices, and the one that ends last is saved. Without a lease no record is kept: such turns and their
                failures don't count, so on their account nothing is given up or rotated.
            on_outage: "run" runs fresh and without a lease when Redis is away; "raise" raises StoreUnavailable.
            place: where the agent runs, for the session's record: `Place(host, home, directory)`. With it, a refusal as gone
                of a session that was made elsewhere counts as `moved`, and not as a resume failure.
            on_elsewhere: "try" tries a session that was made elsewhere, in what its agent is bound to; "raise" raises
                SessionElsewhere. Without an agent, it is bound to all of the place that is known.

        Raises:
            LeaseHeld: another worker has the conversation, or took it over before a refused resume could be run fresh.
            SessionBusy: the agent says that another writer has the session.
            SessionElsewhere: the session was made elsewhere, and `on_elsewhere` is "raise"; nothing was run.
            StoreUnavailable, AccessDenied: Redis is away, or refuses this user, and `on_outage` is "raise".
            InvalidSettings: an argument is invalid; nothing was run.
            InvalidKey, CorruptValue: as for every method.
            TypeError: `run` did not return a Turn, or `judge` not a Judgement; or an argument is of another type.
            Exception: what `run` raised, unless it was a refused resume. Whatever is raised, the lease is released first.
        """
        options = {"wait_ms": wait_ms, "lease": lease, "on_outage": on_outage, "place": place, "on_elsewhere": on_elsewhere}
        request = self._request(key, judge, agent, accepts, **options)
        return drive(self._ops, self._renewer, resume(self._ops, request), run)

    def save_early(self, key: str, session_id: str) -> bool:
        """Save the session ID of a turn that is still running in `resume` on this store: call it from `run`, in any thread.

        It says that the model has answered in that session, so that it is worth resuming whatever becomes of the turn. The
        lease goes on. False if no turn of that conversation runs here, or more than one, as after it was taken over; if the
        ID can't be one of its agent's; or if it has no lease any more. A turn that never had one saves the ID at its end.
        Raises InvalidSessionID.
        """
        return self._run(self._save_early(key, session_id))

    def close(self) -> None:
        """Close the client and its connections. Every later call raises SessionStoreError."""
        self._closed.add(SessionStore)
        self._renewer.close()
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, scan: Scan, rows_of: Callable[[StoreSettings, Page], Iterator[R]]) -> Rows[R]:
        def rows() -> Iterator[R]:
            settings = self._run(agreed(self.settings))
            while (read := self._run(scan.next_of(lambda page: list(rows_of(settings, page))))) is not None:
                yield from chain.from_iterable(read)

        return Rows(scan, rows())

    def _run(self, op: Op[T]) -> T:
        self._check_open(SessionStore)
        return run(self._client_of(), op, self._link)


def _documented(kind: type[K]) -> type[K]:
    """Give each method the docstring of its sync twin at run time, followed by what comes after its own first line."""
    for name, member in vars(kind).items():
        twin = None if name.startswith("_") else getattr(SessionStore, name, None)
        if twin is not None and twin.__doc__:
            method = getattr(member, "__func__", member)
            _, _, below = method.__doc__.partition("\n")
            method.__doc__ = f"{twin.__doc__.rstrip()}\n{below}"
    return kind


@_documented
class AsyncSessionStore(BaseStore[AsyncClient]):
    """Session IDs of conversations in Redis, for asyncio: the methods of SessionStore, awaited; they raise the same errors.

    `AsyncSessionStore.from_url("redis://127.0.0.1:6379/0")` makes one; used in an `async with`, it closes its connections at
    the end. It has a client for each event loop; one that you built belongs to the loop of its first command.

    Attributes:
        client: the redis-py client underneath.
        settings: how the store behaves.
    """

    _awaits = True

    @classmethod
    def from_url(cls, url: str, settings: StoreSettings | None = None, *, password: str | None = None) -> Self:
        """A store over a safe client, which connects at its first operation. Same as SessionStore.from_url."""
        checked, target = _checked(settings), parse(url, password)
        return cls(aconnect(target, checked), checked, _link=link(target, checked))

    async def get(self, key: str) -> str | None:
        """The live session ID of a conversation, None if there is none. Same as SessionStore.get."""
        return await self._run(self._ops.get(key))

    async def peek(self, key: str) -> Peek | None:
        """The live session ID, how long it has left, and its record. Same as SessionStore.peek."""
        return await self._run(self._ops.peek(key))

    async def set(self, key: str, session_id: str) -> None:
        """Save a session ID. Same as SessionStore.set."""
        await self._run(self._ops.acknowledged(self._ops.set(key, session_id)))

    async def delete(self, key: str, session_id: str | None = None) -> bool:
        """Delete a conversation's session ID, or only that one. Same as SessionStore.delete."""
        return await self._run(self._ops.delete(key, session_id))

    async def acquire(self, key: str, token: str | None = None) -> Lease | Held:
        """Claim a conversation for `lease_ms`. Same as SessionStore.acquire."""
        return await self._run(self._ops.acquire(key, None if token is None else checked_token(token)))

    def lease(self, key: str) -> AbstractAsyncContextManager[Lease]:
        """Hold a conversation's lease for a block. Same as SessionStore.lease.

        It is an `async with`.
        """
        return aleased(self._run, self._ops, self._renewals, key)

    async def renew(self, lease: Lease) -> bool:
        """Renew a lease for another `lease_ms`. Same as SessionStore.renew."""
        return await self._run(self._ops.renew(lease))

    async def save(self, lease: Lease, session_id: str) -> bool:
        """Save a session ID and release the lease. Same as SessionStore.save."""
        with self._ending(lease):
            return await self._run(self._ops.acknowledged(self._ops.save(lease, session_id)))

    async def reject(self, lease: Lease) -> bool:
        """Delete the session ID that this lease found, if it is still there. Same as SessionStore.reject."""
        return (await self._run(self._ops.reject(lease))).mine

    async def fail(self, lease: Lease) -> bool:
        """Count an undecided failure of the session that this lease found. Same as SessionStore.fail."""
        with self._ending(lease):
            return (await self._run(self._ops.fail(lease))).mine

    async def release(self, lease: Lease) -> bool:
        """Release a lease without saving. Same as SessionStore.release."""
        with self._ending(lease):
            return (await self._run(self._ops.release(lease))).mine

    async def break_lease(self, key: str) -> Held | None:
        """Take the lease away from the worker that has the conversation. Same as SessionStore.break_lease."""
        return await self._run(self._ops.break_lease(key))

    async def increment_resume_failures(self) -> int:
        """Count one refused resume. Same as SessionStore.increment_resume_failures."""
        return await self._run(self._ops.increment(RESUME_FAILURES))

    async def resume_failures_total(self) -> int:
        """How many resumes were refused. Same as SessionStore.resume_failures_total."""
        return await self._run(self._ops.counter(RESUME_FAILURES))

    async def counters(self) -> dict[str, int | None]:
        """Every counter of redis_sessions.keys.COUNTERS by its name. Same as SessionStore.counters."""
        return await self._run(self._ops.counters())

    async def report(self, progress: Progress | None = None, *, records: bool = False) -> Report:
        """Scan all session keys and report their state. Same as SessionStore.report."""
        return await self._run(report(self.settings, progress, records=records))

    def sessions(self, *, records: bool = True) -> AsyncRows[SessionRow]:
        """Every live session, a page at a time. Same as SessionStore.sessions."""
        return self._rows(Scan(self.settings, records=records), session_rows)

    def leases(self) -> AsyncRows[LeaseRow]:
        """Every conversation that a worker runs now, a page at a time. Same as SessionStore.leases."""
        return self._rows(Scan(self.settings, leases=True), lease_rows)

    async def near_namespaces(self) -> tuple[str, ...]:
        """Namespaces on this server, those with similar names first. Same as SessionStore.near_namespaces."""
        return await self._run(near_namespaces(self.settings))

    async def live_session_ids(self) -> frozenset[str]:
        """The session IDs of all keys. Same as SessionStore.live_session_ids."""
        return await self._run(live_session_ids(self.settings))

    async def import_legacy(
        self,
        path: str | Path,
        *,
        shape: Shape | str | None = None,
        agent: str | Agent | None = None,
        assume_used_at: Literal["mtime"] | int | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> ImportResult:
        """Import a sessions.json. Same as SessionStore.import_legacy.

        The file is read in a thread.
        """
        legacy, accepts = await asyncio.to_thread(read, path, as_shape(shape)), _form_of(agent)
        return await self._run(import_entries(self._ops, legacy, assume_used_at, progress, accepts=accepts, dry_run=dry_run))

    async def export(self, path: str | Path, progress: Progress | None = None) -> ExportResult:
        """Write every live session to a sessions.json. Same as SessionStore.export."""
        with Writer(path) as writer:
            return await self._run(export_entries(self.settings, writer.add, progress))

    async def doctor(self, agent: str | None = None, progress: Progress | None = None) -> Diagnosis:
        """Check the server, the connection and the keys. Same as SessionStore.doctor."""
        from redis_sessions.doctor.examine import ask_quorum, examine  # noqa: PLC0415 - called by few, and slow to import

        quorums = [await arun(sentinel, ask_quorum(service)) for sentinel, service in sentinels(self.client)]
        client = ClientFacts(self._link.tls, self._link.risks)
        return await self._run(examine(self.settings, client, quorums, agent, progress))

    async def retime(self, max_age_ms: int, *, dry_run: bool = False, progress: Progress | None = None) -> RetimeResult:
        """Set the max age of the namespace, and apply it to the sessions that are there. Same as SessionStore.retime."""
        settings = self.settings.model_copy(update={"session_max_age_ms": max_age_ms})
        return await self._run(retime(settings, progress, dry_run=dry_run))

    async def resume(
        self,
        key: str,
        run: Callable[[str | None], Awaitable[Turn[V]]],
        *,
        agent: str | Agent | None = None,
        judge: Judge | None = None,
        accepts: Callable[[str], bool] | None = None,
        wait_ms: int = 0,
        lease: bool = True,
        on_outage: Literal["run", "raise"] = "run",
        place: Place | None = None,
        on_elsewhere: Literal["try", "raise"] = "try",
    ) -> ResumeResult[V]:
        """Run one turn of a conversation. Same as SessionStore.resume.

        `run` is awaited. A cancellation, too, releases the lease before it takes effect.
        """
        options = {"wait_ms": wait_ms, "lease": lease, "on_outage": on_outage, "place": place, "on_elsewhere": on_elsewhere}
        request = self._request(key, judge, agent, accepts, **options)
        return await adrive(self._ops, self._run, resume(self._ops, request), run)

    async def save_early(self, key: str, session_id: str) -> bool:
        """Save the session ID of a turn that is still running in `resume`. Same as SessionStore.save_early."""
        return await self._run(self._save_early(key, session_id))

    async def aclose(self) -> None:
        """Close the client and its connections. Every later call raises SessionStoreError."""
        self._closed.add(asyncio.get_running_loop())
        await self.client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _rows(self, scan: Scan, rows_of: Callable[[StoreSettings, Page], Iterator[R]]) -> AsyncRows[R]:
        async def rows() -> AsyncIterator[R]:
            settings = await self._run(agreed(self.settings))
            while (read := await self._run(scan.next_of(lambda page: list(rows_of(settings, page))))) is not None:
                for row in chain.from_iterable(read):
                    yield row

        return AsyncRows(scan, rows())

    async def _run(self, op: Op[T]) -> T:
        self._check_open(asyncio.get_running_loop())
        return await arun(self._client_of(), op, self._link)


def _checked(settings: StoreSettings | None) -> StoreSettings:
    if not isinstance(settings, StoreSettings | None):
        raise TypeError(
            f"settings must be a StoreSettings, not a {type(settings).__name__}: write StoreSettings(namespace=…)"
        )
    return StoreSettings() if settings is None else settings
