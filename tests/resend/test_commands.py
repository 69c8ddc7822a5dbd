"""Replies that get lost: each command is sent again where that is right, and the end is as if nothing had happened."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import redis

from redis_sessions import Held, Lease, SessionStore, StoreSettings, StoreUnavailable
from redis_sessions.client import execute
from redis_sessions.client.execute import run
from redis_sessions.operations.command import Command
from tests.resend.losses import HASTY, LOSSES


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

    def test_a_claim_whose_reply_was_lost_recognizes_itself(self):
        self.store.set("a", "ID-1")
        self.lose()
        lease = self.store.acquire("a")
        assert isinstance(lease, Lease)
        assert lease.session_id == "ID-1"
        assert isinstance(self.store.acquire("a"), Held)

    def test_another_workers_claim_stays_refused(self):
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

    def test_a_lease_that_is_broken(self):
        lease = self.store.acquire("a")
        self.store.break_lease("a")
        successor = self.store.acquire("a")
        self.client.losses = [None, *self.losses]
        assert self.store.break_lease("a").holder == successor.token
        assert not self.store.renew(lease)
        assert not self.store.save(successor, "ID-1")
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


def test_another_save_between_two_sendings(store, client, monkeypatch):
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


def test_a_claim_between_two_sendings_of_a_broken_lease(store, client, monkeypatch):
    """It is broken by its holder: a worker that claims the conversation once it is free keeps it."""
    lease, send, claims = store.acquire("a"), client._client.execute_command, []

    def execute_command(*args, **options):
        reply = send(*args, **options)
        if not claims:
            monkeypatch.setattr(client._client, "execute_command", send)
            claims.append(SessionStore(client._client, store.settings).acquire("a"))
            raise redis.ConnectionError
        return reply

    monkeypatch.setattr(client._client, "execute_command", execute_command)
    assert store.break_lease("a").holder == lease.token
    assert isinstance(claims[0], Lease)
    assert store.renew(claims[0])
    assert not store.save(lease, "ID-1")


def test_a_save_resent_by_the_callers_client(client, valkey, namespace):
    """The wire sees one sending; so what the lease can't tell any more, the ID must."""
    client._client.set_retry(redis.retry.Retry(redis.backoff.NoBackoff(), 1))
    store = SessionStore(client._client, StoreSettings(namespace=namespace))
    lease = store.acquire("a")
    assert store.save(lease, "ID-1") is True
    assert store.save(lease, "ID-1") is True
    assert store.save(lease, "ID-2") is False
    store.delete("a")


def test_a_script_flushed_at_every_moment(store, client, valkey, monkeypatch):
    send = client._client.execute_command

    def execute_command(*args, **options):
        flusher.script_flush()
        return send(*args, **options)

    with redis.Redis.from_url(valkey.url) as flusher:
        monkeypatch.setattr(client._client, "execute_command", execute_command)
        assert store.save(store.acquire("a"), "ID-1") is True
        assert store.report().live == 1


def test_scripts_are_loaded_again(store, client):
    lease = store.acquire("a")
    client._client.script_flush()
    assert store.save(lease, "ID-1") is True
    client._client.script_flush()
    assert store.report().live == 1


def test_tries_end(client, monkeypatch):
    slept_s = []
    clock = SimpleNamespace(monotonic=lambda: sum(slept_s), sleep=slept_s.append)
    monkeypatch.setattr(execute, "time", clock)
    client.losses = ["before"] * 100
    with pytest.raises(StoreUnavailable) as caught:
        SessionStore(client, _link=HASTY).get("a")
    assert caught.value.key == "a"
    assert 90 < len(client.losses) < 99


def test_a_refused_operation_is_closed_at_once(client):
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
