"""What each operation costs: how many times the client goes to the server, counted."""

from __future__ import annotations

import pytest
import redis

from redis_sessions import SessionStore, StoreSettings, Turn


class CountingClient:
    """Counts what it is asked to send; a pipeline counts once."""

    def __init__(self, client):
        self.trips = 0
        self._client = client

    def execute_command(self, *args, **options):
        self.trips += 1
        return self._client.execute_command(*args, **options)

    def pipeline(self, *, transaction):
        pipeline = self._client.pipeline(transaction=transaction)
        execute = pipeline.execute

        def counted(**options):
            self.trips += 1
            return execute(**options)

        pipeline.execute = counted
        return pipeline

    @property
    def connection_pool(self):
        """What a batch asks for once."""
        self.trips += 1
        return self._client.connection_pool


@pytest.fixture
def client(valkey):
    client = CountingClient(redis.Redis.from_url(valkey.url))
    yield client
    client._client.close()


@pytest.fixture
def trips(client, namespace, valkey):
    """How many round trips something on a store takes; scripts are loaded already."""
    store = SessionStore(client, StoreSettings(namespace=namespace))
    warm = store.acquire("warm")
    store.renew(warm)
    store.reject(warm)
    store.save(warm, "ID-1")
    store.fail(store.acquire("warm"))
    store.release(store.acquire("warm"))
    store.delete("warm", "ID-1")
    store.acquire("warm")
    store.break_lease("warm")
    list(store.sessions())

    def count(something):
        client.trips = 0
        something(store)
        return client.trips

    yield count
    for key in valkey.raw.scan_iter(f"{namespace}:*"):
        valkey.raw.delete(key)


@pytest.mark.parametrize(
    "operation",
    [
        lambda store: store.get("a"),
        lambda store: store.peek("a"),
        lambda store: store.set("a", "ID-1"),
        lambda store: store.delete("a"),
        lambda store: store.delete("a", "ID-1"),
        lambda store: store.acquire("a"),
        lambda store: store.increment_resume_failures(),
        lambda store: store.resume_failures_total(),
        lambda store: store.counters(),
    ],
)
def test_each_operation_takes_one(trips, operation):
    assert trips(operation) == 1


def test_each_lease_operation_takes_one(trips):
    def steps(store):
        lease = store.acquire("a")
        store.renew(lease)
        store.reject(lease)
        store.save(lease, "ID-1")
        store.release(lease)

    assert trips(steps) == 5


def test_a_turn_takes_two(trips):
    """The claim, and the save that counts and releases."""
    assert trips(lambda store: store.resume("a", lambda _: Turn("ID-1"))) == 2
    assert trips(lambda store: store.resume("a", lambda _: Turn("ID-1"))) == 2
    assert trips(lambda store: store.resume("b", lambda _: Turn(None))) == 2


def test_the_first_turn_of_a_store_takes_one_more(trips, client, namespace):
    """It asks whether a proxy in between scatters keys, and for the max age of the other workers.

    Only the first turn of a namespace writes the max age, and that takes one more; as does a save without a claim.
    """

    def first(namespace, **settings):
        store = SessionStore(client, StoreSettings(namespace=namespace, **settings))
        return [trips(lambda _: store.resume("a", lambda _: Turn("ID-1"))) for _ in range(2)]

    new, store = f"{namespace}-new", SessionStore(client)
    store.for_namespace(f"{new}er").set("a", "ID-1")  # the server gets to know the script
    assert first(new) == [4, 2]
    assert first(new) == [3, 2]
    assert first(new, session_max_age_ms=1000) == [4, 2]
    saver = store.for_namespace(new)
    assert [trips(lambda _: saver.set("a", "ID-1")) for _ in range(2)] == [2, 1]
    for key in client._client.scan_iter(f"{new}*"):
        client._client.delete(key)


def test_breaking_a_lease_takes_two(trips):
    assert trips(lambda store: store.break_lease("a")) == 1
    assert trips(lambda store: store.acquire("a") and store.break_lease("a")) == 3


def test_a_failed_turn_takes_two(trips):
    def fail(_):
        raise ValueError

    def turn(store):
        with pytest.raises(ValueError):
            store.resume("a", fail)

    assert trips(turn) == 2
    trips(lambda store: store.set("a", "ID-1"))
    assert trips(turn) == 2


def test_a_turn_on_a_cluster_takes_three(places, namespace):
    """The counters have slots of their own."""
    client = CountingClient(redis.RedisCluster.from_url(places.get("cluster").url.split(",")[0].replace("+cluster", "")))
    client.get_primaries = client._client.get_primaries
    store = SessionStore(client, StoreSettings(namespace=namespace))
    trips = []
    for _ in range(3):
        client.trips = 0
        store.resume("a", lambda _: Turn("ID-1"))
        trips.append(client.trips)
    assert trips[1:] == [3, 3]
    for key in client._client.scan_iter(f"{namespace}:*"):
        client._client.delete(key)
    client._client.close()


def test_a_turn_after_a_refusal_takes_three(trips):
    def run(session_id):
        if session_id:
            raise RuntimeError("No conversation found with session ID: ID-1")
        return Turn("ID-2", None)

    trips(lambda store: store.set("a", "ID-1"))
    assert trips(lambda store: store.resume("a", run)) == 3  # claim, reject, save


def test_an_import_takes_two_per_batch_and_two_in_all(trips, tmp_path):
    """Two find out whether one server has all keys, so that one connection can write a batch."""
    path = tmp_path / "sessions.json"
    path.write_text('{"a": "ID-1"}')
    trips(lambda store: store.import_legacy(path, assume_used_at="mtime"))  # which compares the max age
    path.write_text("{" + ",".join(f'"key{n}": "ID-{n}"' for n in range(1200)) + "}")
    assert trips(lambda store: store.import_legacy(path)) == 2 + 3  # all expired: the time of each batch
    assert trips(lambda store: store.import_legacy(path, assume_used_at="mtime")) == 2 + 6
