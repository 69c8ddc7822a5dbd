"""URLs of a store: what each is taken for, and that none is ever quoted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_sessions import AsyncSessionStore, InvalidSettings, SessionStore, StoreSettings
from redis_sessions.client.url import Target, parse
from tests.over import over


@over(
    ("url", "target"),
    [
        ("redis://127.0.0.1:6379/0", Target("standalone", (("127.0.0.1", 6379),))),
        ("redis://localhost", Target("standalone", (("localhost", 6379),))),
        ("redis://u:p%40ss%2F@[::1]:7/3", Target("standalone", (("::1", 7),), database=3, username="u", password="p@ss/")),
        ("redis://:p@h", Target("standalone", (("h", 6379),), password="p")),
        (
            "rediss://h/1?ssl_ca_certs=%2Fca.pem&ssl_certfile=/c&ssl_keyfile=/k",
            Target(
                "standalone",
                (("h", 6379),),
                database=1,
                tls=True,
                tls_files={"ssl_ca_certs": "/ca.pem", "ssl_certfile": "/c", "ssl_keyfile": "/k"},
            ),
        ),
        ("unix:///run/redis.sock?db=2", Target("unix", path="/run/redis.sock", database=2)),
        ("unix://u:p@/run/redis.sock", Target("unix", path="/run/redis.sock", username="u", password="p")),
        (
            "redis+sentinel://a:1,b/main/4",
            Target("sentinel", (("a", 1), ("b", 26379)), service="main", database=4),
        ),
        (
            "rediss+sentinel://u:p@a/main?sentinel_username=s&sentinel_password=%3F+%26&ssl_ca_certs=/a+b",
            Target(
                "sentinel",
                (("a", 26379),),
                service="main",
                username="u",
                password="p",
                sentinel_username="s",
                sentinel_password="?+&",
                tls=True,
                tls_files={"ssl_ca_certs": "/a+b"},
            ),
        ),
        ("redis+cluster://a:1,b:2", Target("cluster", (("a", 1), ("b", 2)))),
        ("rediss+cluster://u:p@a:1", Target("cluster", (("a", 1),), username="u", password="p", tls=True)),
    ],
)
def test_parsing(url, target):
    assert parse(url) == target


BAD = [
    "", "127.0.0.1:6379", "http://h", "redis:///0", "redis://h:port/0", "redis://h:0", "redis://h:99999", "redis://h/abc",
    "redis://h/0/1", "redis://a,b", "redis://h?ssl_cert_reqs=none", "rediss://h?ssl_cert_reqs=none", "rediss://h?ssl_check_hostname=",
    "redis://h?db=1", "unix://relative/path", "unix://", "redis+sentinel://h", "redis+cluster://h/1", "redis://[::1",
    "redis://h/0#x", "redis://h?x", "redis://h:²", "redis://h?sentinel_password=p", "redis+sentinel://h/m?db=1",
    "redis+sentinel://h/m?sentinel_password_file=/no/such", "redis+sentinel://h/m?sentinel_password_file=%00",
    "redis+sentinel://h/m?sentinel_password=p&sentinel_password_file=/etc/hostname",
]  # fmt: skip


@over("url", BAD)
def test_invalid_urls_are_refused(url):
    for kind in (SessionStore, AsyncSessionStore):
        with pytest.raises(InvalidSettings, match=r"^url "):
            kind.from_url(url)


@over(
    "url",
    [
        "redis://:s3cret/more@h:6379/0",
        "redis://u:s3cret@more@h/x",
        "redis://:s3cret#more@h",
        "http://u:s3cret@h",
        "redis://u:s3cret@h:p/0",
        "redis://:s3cret?more@h",
        "redis://:pa?s3cret=x@h:1/0",
        "redis://u:s3cret@[::1",
        "redis+sentinel://u:6379/s3cret@h",
        "rediss+sentinel://u:1/s3cret@h/0",
        "unix://u:p@/s3cret@/run/redis.sock",
        "redis+sentinel://h/m?sentinel_password=p&s3cret=q",
        "redis+sentinel://h/m?sentinel_password=s3cret&more",
        "redis+sentinel://h/m?sentinel_password=s3cret#more",
        "redis+sentinel://h/m?sentinel_password=p&sentinel_password_file=/s3cret",
        "redis+sentinel://h/m?sentinel_password_file=s3cret",
        "s3cret",
    ],
)
def test_errors_show_no_password(url):
    with pytest.raises(InvalidSettings) as caught:
        parse(url)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_no_repr_shows_a_password():
    target = parse("redis://u:s3cret@h:1/0")
    assert "s3cret" not in repr(target)
    assert target.address == "h:1"
    with SessionStore.from_url("redis://u:s3cret@h:1/0") as store:
        assert "s3cret" not in repr(store.client)
        assert repr(store) == "SessionStore('h:1', namespace='sessions')"


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text):
    for url in (text, f"redis://{text}", f"unix://{text}", f"redis+sentinel://{text}", f"rediss+cluster://{text}"):
        try:
            parse(url)
        except InvalidSettings:
            continue


def test_the_client_is_safe():
    with SessionStore.from_url("redis://h", StoreSettings(socket_timeout_ms=300, max_connections=7)) as store:
        pool = store.client.connection_pool
        assert pool.max_connections == 7
        connection = pool.make_connection()
        assert connection.socket_timeout == 0.3
        assert connection.retry.get_retries() == 0
        assert connection.driver_info is None
        assert not store.client.connection_pool.maint_notifications_enabled()
