"""Replies that get lost: each command is sent again where that is right, and the end is as if nothing had happened."""

from __future__ import annotations

import inspect

import pytest
import redis

from redis_sessions import Held, Lease, SessionStore, StoreSettings, StoreUnavailable
from redis_sessions.exchange import Link
from redis_sessions.migrate import export_entries
from redis_sessions.scripts import IMPORT
from redis_sessions.wire import run

PATIENT = Link(address="test", attempts=5, deadline_s=5)


class LosingClient:
    """A redis-py client that loses calls: «before» they reach the server, or «after», their reply."""

    def __init__(self, client):
        self._client = client
        self.losses = []
        self.pipeline = client.pipeline

    def execute_command(self, *args, **options):
        loss = self.losses.pop(0) if self.losses else None
        if loss == "before":
            raise redis.ConnectionError
        reply = self._client.execute_command(*args, **options)
        if loss == "after":
            raise redis.TimeoutError
        return reply


@pytest.fixture
def client(valkey):
    client = LosingClient(redis.Redis.from_url(valkey.url))
    yield client
    client._client.close()


@pytest.fixture
def store(client, namespace, valkey):
    yield SessionStore(client, StoreSettings(namespace=namespace), link=PATIENT)
    for key in valkey.raw.scan_iter(f"{namespace}:*"):
        valkey.raw.delete(key)


LOSSES = [["before"], ["after"], ["after", "after"], ["before", "after", "before"]]


@pytest.mark.parametrize("losses", LOSSES)
class TestEveryCommandThatMayBeSentTwice:
    @pytest.fixture(autouse=True)
    def _keep(self, store, client, losses):
        self.store, self.client, self.losses = store, client, losses

    def lose(self):
        self.client.losses = list(self.losses)

    def test_get_and_set(self):
        self.lose()
        self.store.set("a", "ID-1")
        self.lose()
        assert self.store.get("a") == "ID-1"

    def test_a_claim_whose_reply_was_lost_is_known_as_ones_own(self):
        self.store.set("a", "ID-1")
        self.lose()
        lease = self.store.acquire("a")
        assert isinstance(lease, Lease)
        assert lease.session_id == "ID-1"
        assert isinstance(self.store.acquire("a"), Held)

    def test_a_claim_of_anothers_stays_refused(self):
        holder = self.store.acquire("a")
        self.lose()
        assert self.store.acquire("a").holder == holder.token

    def test_a_save_whose_reply_was_lost_is_saved(self):
        lease = self.store.acquire("a")
        self.lose()
        assert self.store.save(lease, "ID-1") is True
        assert self.store.get("a") == "ID-1"
        assert isinstance(self.store.acquire("a"), Lease)

    def test_a_renewal(self):
        lease = self.store.acquire("a")
        self.lose()
        assert self.store.renew(lease) is True

    def test_a_rejection(self):
        self.store.set("a", "ID-1")
        lease = self.store.acquire("a")
        self.lose()
        assert self.store.reject(lease) is True
        assert self.store.get("a") is None
        assert isinstance(self.store.acquire("a"), Held)

    def test_a_release_leaves_nothing_held(self):
        lease = self.store.acquire("a")
        self.lose()
        assert self.store.release(lease) is True
        assert isinstance(self.store.acquire("a"), Lease)

    def test_a_release_sent_again_does_not_free_a_successor(self):
        late = self.store.acquire("a")
        self.store.release(late)
        successor = self.store.acquire("a")
        self.lose()
        assert self.store.release(late) is False
        assert self.store.acquire("a").holder == successor.token

    def test_a_delete_leaves_nothing_and_never_takes_a_newer_id(self):
        self.store.set("a", "ID-1")
        self.lose()
        self.store.delete("a", "ID-1")
        assert self.store.get("a") is None
        self.store.set("a", "ID-2")
        self.lose()
        assert self.store.delete("a", "ID-1") is False
        assert self.store.get("a") == "ID-2"


class TestTheCounter:
    def test_a_lost_reply_counts_once_and_is_an_error(self, store, client):
        client.losses = ["after"]
        with pytest.raises(StoreUnavailable):
            store.increment_resume_failures()
        assert store.resume_failures_total() == 1

    def test_a_lost_command_counts_nothing(self, store, client):
        client.losses = ["before"]
        with pytest.raises(StoreUnavailable):
            store.increment_resume_failures()
        assert store.resume_failures_total() == 0


def test_a_save_between_whose_two_sendings_somebody_else_saved(store, client, monkeypatch):
    """The first sending saved and gave the lease back; a successor saved another ID; the second must not write over it."""
    lease = store.acquire("a")
    send, calls = client._client.execute_command, []

    def execute_command(*args, **options):
        reply = send(*args, **options)
        calls.append(args)
        if len(calls) == 1:
            monkeypatch.setattr(client._client, "execute_command", send)
            plain = SessionStore(client._client, store.settings)
            assert plain.save(plain.acquire("a"), "ID-successor")
            raise redis.ConnectionError
        return reply

    monkeypatch.setattr(client._client, "execute_command", execute_command)
    assert store.save(lease, "ID-first") is False
    assert store.get("a") == "ID-successor"


def test_a_save_that_a_client_of_the_callers_sends_again_by_itself(client, valkey, namespace):
    """The wire sees one sending; so what the lease can't tell any more, the ID must."""
    client._client.set_retry(redis.retry.Retry(redis.backoff.NoBackoff(), 1))
    store = SessionStore(client._client, StoreSettings(namespace=namespace))
    lease = store.acquire("a")
    assert store.save(lease, "ID-1") is True
    assert store.save(lease, "ID-1") is True
    assert store.save(lease, "ID-2") is False
    store.delete("a")


def test_a_script_that_is_flushed_at_every_moment(store, client, valkey, monkeypatch):
    send = client._client.execute_command

    def execute_command(*args, **options):
        flusher.script_flush()
        return send(*args, **options)

    with redis.Redis.from_url(valkey.url) as flusher:
        monkeypatch.setattr(client._client, "execute_command", execute_command)
        assert store.save(store.acquire("a"), "ID-1") is True
        assert store.report().live == 1


class TestAnImport:
    """Entries a and c are new; b is live. A batch asks for the time, then goes by script, or by SET as to a cluster."""

    @pytest.fixture(params=["alone", "cluster"], autouse=True)
    def _alone(self, request, client):
        if request.param == "cluster":
            client.get_primaries = lambda: ["node"]

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "sessions.json"
        path.write_text('{"a": "ID-a", "b": "ID-b", "c": "ID-c"}')
        return path

    @pytest.fixture
    def store(self, client, namespace, store):
        store.set("b", "ID-live")
        client._client.script_load(IMPORT.source)
        return SessionStore(client, StoreSettings(namespace=namespace, batch_size=1), link=PATIENT)

    @pytest.mark.parametrize("at", range(6))
    @pytest.mark.parametrize("losses", LOSSES)
    def test_counts_what_an_earlier_sending_wrote_as_imported(self, store, client, path, at, losses):
        client.losses = [None] * at + losses
        result = store.import_legacy(path, assume_used_at="mtime")
        assert (result.imported, result.kept) == (2, 1)
        assert [store.get(key) for key in "abc"] == ["ID-a", "ID-live", "ID-c"]

    def test_keeps_a_key_of_the_wrong_type(self, store, client, namespace, path):
        client._client.lpush(f"{namespace}:id:{{a}}", "x")
        client.losses = [None, "after"]
        result = store.import_legacy(path, assume_used_at="mtime")
        assert (result.imported, result.kept) == (1, 2)
        client._client.delete(f"{namespace}:id:{{a}}")

    def test_does_not_guess_where_it_can_not_look(self, store, client, path):
        client.losses = [None, "after", None, *["before"] * 5]
        with pytest.raises(StoreUnavailable):
            store.import_legacy(path, assume_used_at="mtime")

    @pytest.mark.parametrize("_alone", ["cluster"], indirect=True)
    def test_over_a_pipeline(self, client, namespace, path, monkeypatch):
        store, lost = SessionStore(client, StoreSettings(namespace=namespace), link=PATIENT), []
        store.set("b", "ID-live")

        def pipeline(**options):
            pipe = client._client.pipeline(**options)
            execute = pipe.execute

            def lose(**how):
                lost.append(execute(**how))
                monkeypatch.setattr(client, "pipeline", client._client.pipeline)
                raise redis.TimeoutError

            pipe.execute = lose
            return pipe

        monkeypatch.setattr(client, "pipeline", pipeline)
        result = store.import_legacy(path, assume_used_at="mtime")
        assert (result.imported, result.kept) == (2, 1)
        assert len(lost) == 1


class TestALeaseIsGivenBackWhenTheFreshRunFails:
    """A resume was refused, something about that was lost, and the server is there again: nothing stays leased."""

    @pytest.mark.parametrize("losses", [[None, None, "after"], [None, *["before"] * 5]], ids=["count", "rejection"])
    def test_although_it_was_lost(self, store, client, losses):
        store.set("a", "ID-1")
        store.release(store.acquire("a"))  # so that the scripts are loaded
        store.reject(store.acquire("b"))
        client.losses = losses

        def run(session_id):
            if session_id:
                raise RuntimeError("No conversation found")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            store.resume("a", run)
        assert not client.losses
        assert isinstance(store.acquire("a"), Lease)


def test_a_scan_that_could_not_ask_whether_the_server_changed_is_not_called_exact(store, client, monkeypatch):
    store.set("a", "ID-1")
    send = client.execute_command

    def execute_command(*args, **options):
        if args[0] == "INFO":
            raise redis.ConnectionError
        return send(*args, **options)

    monkeypatch.setattr(client, "execute_command", execute_command)
    for scan in (store.report, store.live_session_ids):
        with pytest.raises(StoreUnavailable):
            scan()


def test_scripts_load_themselves_again(store, client):
    lease = store.acquire("a")
    client._client.script_flush()
    assert store.save(lease, "ID-1") is True
    client._client.script_flush()
    assert store.report().live == 1


def test_an_export_that_fails_leaves_nothing_open(store, client, tmp_path):
    """Its rows are in a database that only this thread can close, and not the one that comes to collect garbage."""
    client.losses = [None, *["before"] * 5]  # the first asks what the server is, the rest is a page
    operation = export_entries(store.settings, lambda *_: None)
    with pytest.raises(StoreUnavailable):
        run(client, operation, PATIENT)
    assert inspect.getgeneratorstate(operation) == inspect.GEN_CLOSED


def test_tries_end(store, client):
    client.losses = ["before"] * 100
    with pytest.raises(StoreUnavailable) as caught:
        store.get("a")
    assert caught.value.key == "a"
    assert len(client.losses) == 95


def test_an_operation_that_is_refused_is_closed_at_once(client):
    from redis_sessions.commands import Command
    from redis_sessions.wire import run

    closed = []

    def operation():
        try:
            yield [Command(("GET", "a"))]
        finally:
            closed.append(True)

    client.losses = ["before"]
    with pytest.raises(StoreUnavailable):
        run(client, op := operation())
    assert closed, op  # held until here, so that nothing but `run` can have closed it


def test_a_whole_turn_through_losses_everywhere(store, client):
    """Whatever is lost, the turn runs once, is saved, and nothing stays leased."""
    from redis_sessions import Turn

    for position in range(12):
        client.losses = [None] * position + ["after"]
        ran = []
        result = store.resume("a", lambda session_id, ran=ran: ran.append(session_id) or Turn("ID-1", None))
        assert len(ran) == 1
        assert result.saved
        client.losses = []
        lease = store.acquire("a")
        assert isinstance(lease, Lease)
        store.release(lease)
