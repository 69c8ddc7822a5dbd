"""Replies that get lost in an import count nothing twice; in a scan or an export they are never passed over."""

from __future__ import annotations

import inspect

import pytest
import redis

from redis_sessions import InexactScan, SessionStore, StoreSettings, StoreUnavailable
from redis_sessions.client.execute import run
from redis_sessions.legacy.transfer import export_entries
from tests.resend.losses import HASTY, LOSSES, PATIENT


class TestAnImport:
    """Entries a and c are new; b is live. A batch asks for the time, then goes over one connection, or as to a cluster."""

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
        return SessionStore(client, StoreSettings(namespace=namespace, batch_size=1), _link=PATIENT)

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

    def test_does_not_guess_where_it_cannot_look(self, store, client, path):
        client.losses = [None, "after", None, *["before"] * 100]
        store = SessionStore(client, store.settings, _link=HASTY)
        with pytest.raises(StoreUnavailable):
            store.import_legacy(path, assume_used_at="mtime")

    @pytest.mark.parametrize("_alone", ["cluster"], indirect=True)
    def test_over_a_pipeline(self, client, namespace, path, monkeypatch):
        store, lost = SessionStore(client, StoreSettings(namespace=namespace), _link=PATIENT), []
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


def test_a_scan_that_could_not_check_for_a_server_change_is_not_made(store, client, monkeypatch):
    """As behind a proxy that hangs up on INFO, and answers all the rest."""
    store.set("a", "ID-1")
    send = client.execute_command

    def execute_command(*args, **options):
        if args[0] == "INFO":
            raise redis.ConnectionError
        return send(*args, **options)

    monkeypatch.setattr(client, "execute_command", execute_command)
    store = SessionStore(client, store.settings, _link=HASTY)
    for scan in (store.report, store.live_session_ids):
        with pytest.raises(InexactScan, match="URL of the server itself"):
            scan()


def test_an_export_that_fails_leaves_nothing_open(store, client, tmp_path):
    """Its rows are in a database that only this thread can close, and not the one that comes to collect garbage."""
    client.losses = [None, None, *["before"] * 100]  # the first two ask for the max age and the server, the rest is a page
    operation = export_entries(store.settings, lambda *_: None)
    with pytest.raises(StoreUnavailable):
        run(client, operation, HASTY)
    assert inspect.getgeneratorstate(operation) == inspect.GEN_CLOSED
