"""The proxy itself: it separates messages however they are cut, and injects a fault only where it should."""

from __future__ import annotations

import pytest
import redis

from redis_sessions.client.connect import connect
from redis_sessions.client.url import parse
from redis_sessions.settings import StoreSettings
from tests.faults.proxy import Fault, Proxy, any_command, named
from tests.faults.resp import Messages, words

COMMAND = b"*3\r\n$3\r\nSET\r\n$4\r\na\r\nb\r\n$0\r\n\r\n"
STREAM = [
    COMMAND,
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":-1\r\n",
    b"$-1\r\n",
    b"_\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"%2\r\n+a\r\n:1\r\n+b\r\n*2\r\n$4\r\n\r\n\r\n\r\n#t\r\n",
    b"=7\r\ntxt:a\r\n\r\n",
    b"~1\r\n,1.5\r\n",
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_messages_are_separated_however_they_are_cut(size):
    messages, stream, found = Messages(), b"".join(STREAM), []
    for start in range(0, len(stream), size):
        found += messages.feed(stream[start : start + size])
    assert found == STREAM
    assert words(COMMAND) == [b"SET", b"a\r\nb", b""]


@pytest.fixture
def proxy(valkey, loop):
    with Proxy(parse(valkey.url).hosts[0][1], loop, late_s=0.7) as proxy:
        yield proxy


@pytest.fixture
def client(proxy, request):
    """Waits long, where it isn't the fault that it waits for."""
    fault = request.node.callspec.params["fault"] if hasattr(request.node, "callspec") else Fault.REPLY_LATE
    client = connect(parse(proxy.url), StoreSettings(socket_timeout_ms=500 if fault.hangs else 5_000)).get()
    client.get("warm-up")
    yield client
    client.close()


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_hits_its_command_and_nothing_else(proxy, client, valkey, namespace, fault):
    order = proxy.inject(fault, 1, named("INCRBY"))
    assert client.incr(namespace) == 1
    if fault is Fault.REPLY_IN_BYTES:
        assert client.incr(namespace) == 2
    else:
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)) as caught:
            client.incr(namespace)
        assert isinstance(caught.value, redis.TimeoutError) == fault.hangs
    assert order.command == [b"INCRBY", namespace.encode(), b"1"]
    assert proxy.injected[fault] == 1
    assert int(valkey.raw.get(namespace)) == (1 if fault.never_runs else 2)
    assert client.incr(namespace) == (2 if fault.never_runs else 3)
    valkey.raw.delete(namespace)


@pytest.mark.parametrize("fault", [fault for fault in Fault if not fault.hangs])
def test_in_a_pipeline_earlier_commands_are_answered(proxy, client, valkey, namespace, fault):
    pipeline = client.pipeline(transaction=False)
    for _ in range(5):
        pipeline.incr(namespace)
    order = proxy.inject(fault, 2, any_command)
    if fault is Fault.REPLY_IN_BYTES:
        assert pipeline.execute() == [1, 2, 3, 4, 5]
    else:
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
            pipeline.execute()
    assert order.fired.is_set()
    assert int(valkey.raw.get(namespace)) == (2 if fault.never_runs else 5)
    valkey.raw.delete(namespace)


def test_a_late_reply_reaches_the_next_command_on_that_connection(proxy, client, valkey, namespace):
    """What the package must never do: read on after a timeout. Here a client does, and gets the wrong reply."""
    valkey.raw.mset({f"{namespace}-a": "A", f"{namespace}-b": "B"})
    connection = client.connection_pool.get_connection()
    proxy.inject(Fault.REPLY_LATE)
    connection.send_command("GET", f"{namespace}-a")
    with pytest.raises(redis.TimeoutError):
        connection.read_response(disconnect_on_error=False)
    connection.send_command("GET", f"{namespace}-b")
    assert connection.read_response() == b"A"
    connection.disconnect()
    client.connection_pool.release(connection)
    assert client.get(f"{namespace}-b") == b"B"
    valkey.raw.delete(f"{namespace}-a", f"{namespace}-b")
