"""SessionStore and AsyncSessionStore: every method hands an operation to the client. No logic here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Generic, Literal, Self, TypeVar

from redis_sessions.client import connect as clients
from redis_sessions.client import url as urls
from redis_sessions.client.execute import Link, arun, run
from redis_sessions.doctor.findings import Connection, Diagnosis
from redis_sessions.errors import StoreUnavailable
from redis_sessions.keys import RESUME_FAILURES
from redis_sessions.legacy import file as legacy_file
from redis_sessions.legacy import transfer
from redis_sessions.legacy.transfer import ExportResult, ImportResult
from redis_sessions.operations import retime, scan
from redis_sessions.operations.command import Op
from redis_sessions.operations.conversation import Held, Lease, Operations, Peek
from redis_sessions.operations.report import Report
from redis_sessions.operations.retime import RetimeResult
from redis_sessions.operations.scan import Progress, SessionRow
from redis_sessions.resume import runner
from redis_sessions.resume.flow import resume
from redis_sessions.resume.renewal import Keeper
from redis_sessions.resume.turn import Judge, Request, ResumeResult, Turn, judge_by_phrase
from redis_sessions.settings import StoreSettings

T = TypeVar("T")
V = TypeVar("V")
C = TypeVar("C")
K = TypeVar("K")


class BaseStore(Generic[C]):
    """A store of either flavour."""

    _awaits: bool

    def __init__(self, client: C | clients.PerProcess[C], settings: StoreSettings | None, link: Link | None) -> None:
        self._shared = client
        self._client_of: Callable[[], C] = client.get if isinstance(client, clients.PerProcess) else lambda: client
        self.settings = _checked(settings)
        self._ops = Operations(self.settings)
        self._link = link or clients.callers_link(client, awaits=self._awaits)

    @property
    def client(self) -> C:
        """The redis-py client underneath; of a store from a URL, that of this process and event loop."""
        return self._client_of()


class SessionStore(BaseStore[clients.SyncClient]):
    """Session IDs of conversations in Redis, shared by any number of threads and processes.

    `SessionStore.from_url("redis://127.0.0.1:6379/0")` makes one; in a `with` it closes its connections at the end.

    Every method that talks to Redis may raise StoreUnavailable (AccessDenied is one), InvalidKey for a key that is not 1 to
    512 bytes of UTF-8, and CorruptValue where a key of ours holds what this package never writes. All that take a Lease
    raise TypeError for anything else, a Held included.

    Attributes:
        client: the redis-py client underneath.
        settings: how the store behaves.
    """

    _awaits = False

    def __init__(
        self,
        client: clients.SyncClient | clients.PerProcess[clients.SyncClient],
        settings: StoreSettings | None = None,
        *,
        _link: Link | None = None,
    ) -> None:
        """A store over a client of your own: its retries apply, to counters too, and what is risky in it is logged.

        Args:
            client: a redis.Redis or redis.RedisCluster. `from_url` builds one that is safe.
            settings: how the store behaves; StoreSettings() unless told.

        Raises TypeError for anything else.
        """
        super().__init__(client, settings, _link)

    @classmethod
    def from_url(cls, url: str, settings: StoreSettings | None = None, *, password: str | None = None) -> Self:
        """A store over a client known to be safe, which connects at its first operation.

        Args:
            url: `redis://user:password@host:6379/0`, `rediss://…` (TLS), `unix:///path?db=0`,
                `redis+sentinel://h1:p,h2:p/SERVICE/DB`, `redis+cluster://h1:p,h2:p`, the last two also as `rediss+…`. User,
                password and path are percent-escaped. With TLS, `?ssl_ca_certs=…&ssl_certfile=…&ssl_keyfile=…` name PEM
                files; certificate and host name are always checked.
            settings: how the store behaves; StoreSettings() unless told.
            password: that of the URL's user, for who keeps the two apart; the URL must have none then.

        Raises:
            InvalidSettings: the URL is None or can't be used, or a file that it names can't be read.
            TypeError: the settings are no StoreSettings.
        """
        target, checked = _target_and_settings(url, settings, password)
        return cls(clients.connect(target, checked), checked, _link=clients.link(target, checked))

    def for_namespace(self, namespace: str) -> Self:
        """A store of another namespace over the same client; closing either closes both. Raises InvalidSettings."""
        return type(self)(self._shared, self.settings.model_copy(update={"namespace": namespace}), _link=self._link)

    def get(self, key: str) -> str | None:
        """The live session ID of a conversation, None if there is none. Never extends its life.

        Raises InvalidSessionID, or CorruptValue if it is no string, where the key holds anything else; both name it.
        """
        return self._run(self._ops.get(key))

    def peek(self, key: str) -> Peek | None:
        """The live session ID and how long it has left, in one round trip; None if there is none.

        Raises InvalidSessionID and CorruptValue as `get` does.
        """
        return self._run(self._ops.peek(key))

    def set(self, key: str, session_id: str) -> None:
        """Save a session ID; its whole TTL starts anew, the same ID included. Minds no lease. Raises InvalidSessionID."""
        self._run(self._ops.set(key, session_id))

    def delete(self, key: str, session_id: str | None = None) -> bool:
        """Delete a conversation's session ID, or only that one; whether this call did (a lost reply may make it False).

        Raises InvalidSessionID for a `session_id` that can be none.
        """
        return self._run(self._ops.delete(key, session_id))

    def acquire(self, key: str, token: str | None = None) -> Lease | Held:
        """Claim a conversation for `lease_ms`: a Lease with the live session ID, or who holds it. Never waits.

        `token` repeats an earlier claim, whose fate is not known; without it the claim is a new one.
        """
        return self._run(self._ops.acquire(key, token))

    def renew(self, lease: Lease) -> bool:
        """Start a lease's time anew; False if another worker has taken the conversation over."""
        return self._run(self._ops.renew(lease))

    def save(self, lease: Lease, session_id: str) -> bool:
        """Save a session ID and give the lease back; False if that was done, or taken over. Raises InvalidSessionID."""
        return self._run(self._ops.save(lease, session_id))

    def reject(self, lease: Lease) -> bool:
        """Delete the session ID that this lease found, if it is still there; False if the lease was taken over."""
        return self._run(self._ops.reject(lease))

    def release(self, lease: Lease) -> bool:
        """Give a lease back without saving; False if it was not held any more."""
        return self._run(self._ops.release(lease))

    def increment_resume_failures(self) -> int:
        """Count one refused resume; the new total. Never sent twice: a lost reply may lose one. Raises CorruptValue."""
        return self._run(self._ops.increment(RESUME_FAILURES))

    def resume_failures_total(self) -> int:
        """How many resumes were refused. Raises CorruptValue if the counter holds no integer."""
        return self._run(self._ops.counter(RESUME_FAILURES))

    def counters(self) -> dict[str, int | None]:
        """`resume_failures_total`, `resumes_total` and `fresh_starts_total`; None for one that holds no integer."""
        return self._run(self._ops.counters())

    def report(self, progress: Progress | None = None) -> Report:
        """Scan all session keys and tell how they are. Deletes nothing; memory is bounded by the page.

        `progress(done, about)` is called after every page, both in keys of the whole database.
        """
        return self._run(scan.report(self.settings, self._ops.counters(), progress))

    def sessions(self) -> Iterator[SessionRow]:
        """Every live session, a page at a time; one may come twice, and what is no valid session ID is left out."""
        walk = scan.Scan(self.settings)
        while (pages := self._run(walk.next_pages())) is not None:
            for page in pages:
                yield from scan.session_rows(self.settings, page)

    def live_session_ids(self) -> frozenset[str]:
        """Every session ID that a key names, for whoever deletes other transcripts; IDs of running turns are not among them.

        Raises InexactScan unless the scan missed none.
        """
        return self._run(scan.live_session_ids(self.settings))

    def import_legacy(
        self,
        path: str | Path,
        *,
        assume_used_at: Literal["mtime"] | int | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> ImportResult:
        """Import a sessions.json: what was used within the max age, with its remaining life. Run twice it changes nothing.

        What is live in Redis is kept as it is; `help("redis_sessions.legacy")` says what becomes of each kind of entry.

        Args:
            path: the file.
            assume_used_at: time of last use of entries that give none: "mtime" for the file's, or milliseconds since 1970;
                None lets them count as expired.
            dry_run: write nothing.
            progress: called with entries done and entries there are.

        Raises:
            LegacyFileError: it can't be read as one; nothing was written.
            InvalidSettings: `assume_used_at` is no such time.
        """
        entries = legacy_file.read(path)
        return self._run(transfer.import_entries(self.settings, entries, assume_used_at, progress, dry_run=dry_run))

    def export(self, path: str | Path, progress: Progress | None = None) -> ExportResult:
        """Write every live session to a sessions.json: whole or not at all, mode 0600. `progress` is as for `report`.

        Raises FileNotWritten.
        """
        with legacy_file.Writer(path) as writer:
            return self._run(transfer.export_entries(self.settings, writer.add, progress))

    def doctor(self, agent: str | None = None, progress: Progress | None = None) -> Diagnosis:
        """Look at the server, the way to it and the keys, and tell what is not as it should be; changes nothing.

        Args:
            agent: name of the runtime whose sessions these are, to hold the max age against.
            progress: as for `report`.

        Raises InvalidSettings if no runtime goes by that name.
        """
        from redis_sessions.doctor.examine import examine  # noqa: PLC0415 - one that few call, and long to import

        quorums = [self._quorum(sentinel, service) for sentinel, service in clients.sentinels(self.client)]
        connection = Connection(self._link.tls, self._link.risks)
        return self._run(examine(self.settings, connection, quorums, agent, progress))

    def retime(
        self, max_age_ms: int | None = None, *, dry_run: bool = False, progress: Progress | None = None
    ) -> RetimeResult:
        """Let no session live longer than a max age from now on, after it was lowered. Run twice it changes nothing.

        Lives are only shortened, or begun where a key had no TTL; what holds no session ID is never touched.

        Args:
            max_age_ms: milliseconds; None takes the store's own.
            dry_run: change nothing.
            progress: as for `report`.

        Raises InvalidSettings for a `max_age_ms` that can be none.
        """
        return self._run(retime.retime(self.settings.with_max_age(max_age_ms), progress, dry_run=dry_run))

    def resume(
        self,
        key: str,
        run: Callable[[str | None], Turn[V]],
        *,
        judge: Judge = judge_by_phrase,
        accepts: Callable[[str], bool] | None = None,
        wait_ms: int = 0,
        lease: bool = True,
        on_outage: Literal["run", "raise"] = "run",
    ) -> ResumeResult[V]:
        """Run one turn of a conversation: resume its live session, or start fresh.

        - A turn that succeeds is saved, its whole max age anew; one that names no session keeps the one it resumed.
        - A resume that the agent refused (`judge` says gone, invalid_id or unusable) deletes the ID and is counted; then
          `run` is called once more, with None, unless the turn had begun.
        - Whatever else went wrong leaves the ID as it is. A fresh run that fails saves nothing.
        - A turn that ran is never lost to Redis: it is returned, with `saved=False` and the `reason`.

        Args:
            key: the conversation.
            run: runs the agent on a session ID, or fresh on None; returns a Turn or raises.
            judge: reads what `run` raised while resuming. Unless told, it knows Claude Code's «No conversation found» and
                nothing else; `redis_sessions.agents.get_agent("codex").judge` and its like know a runtime whole.
            accepts: says whether an ID can be one of the agent's, as `get_agent("codex").can_be` does; any other is neither
                resumed nor saved. None takes all.
            wait_ms: how long to wait for a conversation that another worker runs; 0 raises LeaseHeld at once.
            lease: whether to keep every other worker out meanwhile. With False two may run the conversation at once,
                neither is told, and the one that ends last is saved.
            on_outage: "run" runs fresh and without a lease when Redis is away; "raise" raises StoreUnavailable.

        Raises:
            LeaseHeld: another worker has the conversation, or took it over before a refused resume could be run fresh.
            SessionBusy: the agent says that another writer has the session.
            StoreUnavailable, AccessDenied: Redis is away, or refuses this user, and `on_outage` is "raise".
            InvalidSettings: an argument can't be; nothing was run.
            InvalidKey, CorruptValue: as for every method.
            TypeError: `run` returned no Turn, or `judge` no Judgement.
            Exception: what `run` raised, if it was no refused resume; the lease is given back first, as for all of these.
        """
        request = Request(key, judge, accepts, wait_ms=wait_ms, lease=lease, on_outage=on_outage)
        return runner.drive(self._keeper, resume(self._ops, request), run)

    def close(self) -> None:
        """Close the client and its connections."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _keeper(self) -> Keeper:
        return Keeper(self._ops, self._run)

    def _quorum(self, sentinel: clients.SyncClient, service: str) -> object:
        from redis_sessions.doctor.examine import ask_quorum  # noqa: PLC0415 - see doctor

        try:
            return run(sentinel, ask_quorum(service))
        except StoreUnavailable as error:
            return error

    def _run(self, op: Op[T]) -> T:
        return run(self._client_of(), op, self._link)


def _documented(kind: type[K]) -> type[K]:
    """Let every method say at run time all that its sync twin says, and what stands below its own first line."""
    for name, member in vars(kind).items():
        twin = None if name.startswith("_") else getattr(SessionStore, name, None)
        if twin is not None and twin.__doc__:
            method = getattr(member, "__func__", member)
            _, _, below = method.__doc__.partition("\n")
            method.__doc__ = f"{twin.__doc__.rstrip()}\n{below}"
    return kind


@_documented
class AsyncSessionStore(BaseStore[clients.AsyncClient]):
    """Session IDs of conversations in Redis, for asyncio: the methods of SessionStore, awaited, which raise the same.

    `AsyncSessionStore.from_url("redis://127.0.0.1:6379/0")` makes one; in an `async with` it closes its connections at the
    end. Each event loop that uses it has connections of its own: close it in each.

    Attributes:
        client: the redis-py client underneath.
        settings: how the store behaves.
    """

    _awaits = True

    def __init__(
        self,
        client: clients.AsyncClient | clients.PerProcess[clients.AsyncClient],
        settings: StoreSettings | None = None,
        *,
        _link: Link | None = None,
    ) -> None:
        """Same as SessionStore, over a redis.asyncio.Redis or redis.asyncio.RedisCluster. Raises TypeError for another."""
        super().__init__(client, settings, _link)

    @classmethod
    def from_url(cls, url: str, settings: StoreSettings | None = None, *, password: str | None = None) -> Self:
        """A store over a client known to be safe, which connects at its first operation. Same as SessionStore.from_url."""
        target, checked = _target_and_settings(url, settings, password)
        return cls(clients.aconnect(target, checked), checked, _link=clients.link(target, checked))

    def for_namespace(self, namespace: str) -> Self:
        """A store of another namespace over the same client. Same as SessionStore.for_namespace."""
        return type(self)(self._shared, self.settings.model_copy(update={"namespace": namespace}), _link=self._link)

    async def get(self, key: str) -> str | None:
        """The live session ID of a conversation, None if there is none. Same as SessionStore.get."""
        return await self._run(self._ops.get(key))

    async def peek(self, key: str) -> Peek | None:
        """The live session ID and how long it has left, in one round trip. Same as SessionStore.peek."""
        return await self._run(self._ops.peek(key))

    async def set(self, key: str, session_id: str) -> None:
        """Save a session ID. Same as SessionStore.set."""
        await self._run(self._ops.set(key, session_id))

    async def delete(self, key: str, session_id: str | None = None) -> bool:
        """Delete a conversation's session ID, or only that one. Same as SessionStore.delete."""
        return await self._run(self._ops.delete(key, session_id))

    async def acquire(self, key: str, token: str | None = None) -> Lease | Held:
        """Claim a conversation for `lease_ms`. Same as SessionStore.acquire."""
        return await self._run(self._ops.acquire(key, token))

    async def renew(self, lease: Lease) -> bool:
        """Start a lease's time anew. Same as SessionStore.renew."""
        return await self._run(self._ops.renew(lease))

    async def save(self, lease: Lease, session_id: str) -> bool:
        """Save a session ID and give the lease back. Same as SessionStore.save."""
        return await self._run(self._ops.save(lease, session_id))

    async def reject(self, lease: Lease) -> bool:
        """Delete the session ID that this lease found, if it is still there. Same as SessionStore.reject."""
        return await self._run(self._ops.reject(lease))

    async def release(self, lease: Lease) -> bool:
        """Give a lease back without saving. Same as SessionStore.release."""
        return await self._run(self._ops.release(lease))

    async def increment_resume_failures(self) -> int:
        """Count one refused resume. Same as SessionStore.increment_resume_failures."""
        return await self._run(self._ops.increment(RESUME_FAILURES))

    async def resume_failures_total(self) -> int:
        """How many resumes were refused. Same as SessionStore.resume_failures_total."""
        return await self._run(self._ops.counter(RESUME_FAILURES))

    async def counters(self) -> dict[str, int | None]:
        """`resume_failures_total`, `resumes_total` and `fresh_starts_total`. Same as SessionStore.counters."""
        return await self._run(self._ops.counters())

    async def report(self, progress: Progress | None = None) -> Report:
        """Scan all session keys and tell how they are. Same as SessionStore.report."""
        return await self._run(scan.report(self.settings, self._ops.counters(), progress))

    async def sessions(self) -> AsyncIterator[SessionRow]:
        """Every live session, a page at a time. Same as SessionStore.sessions."""
        walk = scan.Scan(self.settings)
        while (pages := await self._run(walk.next_pages())) is not None:
            for page in pages:
                for row in scan.session_rows(self.settings, page):
                    yield row

    async def live_session_ids(self) -> frozenset[str]:
        """Every session ID that a key names. Same as SessionStore.live_session_ids."""
        return await self._run(scan.live_session_ids(self.settings))

    async def import_legacy(
        self,
        path: str | Path,
        *,
        assume_used_at: Literal["mtime"] | int | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> ImportResult:
        """Import a sessions.json. Same as SessionStore.import_legacy.

        The file is read in a thread.
        """
        entries = await asyncio.to_thread(legacy_file.read, path)
        return await self._run(transfer.import_entries(self.settings, entries, assume_used_at, progress, dry_run=dry_run))

    async def export(self, path: str | Path, progress: Progress | None = None) -> ExportResult:
        """Write every live session to a sessions.json. Same as SessionStore.export."""
        with legacy_file.Writer(path) as writer:
            return await self._run(transfer.export_entries(self.settings, writer.add, progress))

    async def doctor(self, agent: str | None = None, progress: Progress | None = None) -> Diagnosis:
        """Look at the server, the way to it and the keys. Same as SessionStore.doctor."""
        from redis_sessions.doctor.examine import examine  # noqa: PLC0415 - one that few call, and long to import

        quorums = [await self._quorum(sentinel, service) for sentinel, service in clients.sentinels(self.client)]
        connection = Connection(self._link.tls, self._link.risks)
        return await self._run(examine(self.settings, connection, quorums, agent, progress))

    async def retime(
        self, max_age_ms: int | None = None, *, dry_run: bool = False, progress: Progress | None = None
    ) -> RetimeResult:
        """Let no session live longer than a max age from now on, after it was lowered. Same as SessionStore.retime."""
        return await self._run(retime.retime(self.settings.with_max_age(max_age_ms), progress, dry_run=dry_run))

    async def resume(
        self,
        key: str,
        run: Callable[[str | None], Awaitable[Turn[V]]],
        *,
        judge: Judge = judge_by_phrase,
        accepts: Callable[[str], bool] | None = None,
        wait_ms: int = 0,
        lease: bool = True,
        on_outage: Literal["run", "raise"] = "run",
    ) -> ResumeResult[V]:
        """Run one turn of a conversation. Same as SessionStore.resume.

        `run` is awaited. A cancellation, too, gives the lease back before it goes on.
        """
        request = Request(key, judge, accepts, wait_ms=wait_ms, lease=lease, on_outage=on_outage)
        return await runner.adrive(self._ops, self._run, resume(self._ops, request), run)

    async def aclose(self) -> None:
        """Close the client and its connections."""
        await self.client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _quorum(self, sentinel: clients.AsyncClient, service: str) -> object:
        from redis_sessions.doctor.examine import ask_quorum  # noqa: PLC0415 - see doctor

        try:
            return await arun(sentinel, ask_quorum(service))
        except StoreUnavailable as error:
            return error

    async def _run(self, op: Op[T]) -> T:
        return await arun(self._client_of(), op, self._link)


def _target_and_settings(
    url: str, settings: StoreSettings | None, password: str | None
) -> tuple[urls.Target, StoreSettings]:
    """What `from_url` was given, checked. Raises InvalidSettings, and TypeError for settings that are none."""
    checked = _checked(settings)
    return urls.parse(url, password), checked


def _checked(settings: StoreSettings | None) -> StoreSettings:
    if not isinstance(settings, StoreSettings | None):
        raise TypeError(f"settings are a StoreSettings, not a {type(settings).__name__}: write StoreSettings(namespace=…)")
    return StoreSettings() if settings is None else settings
