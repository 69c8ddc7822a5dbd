"""Any text for a URL is a target or refused, and what may be a password in it is never quoted."""

from __future__ import annotations

from hypothesis import strategies as st

from redis_sessions import InvalidSettings
from redis_sessions.client.url import parse
from tests.fuzz.texts import amounts, any_text, fuzz

SECRET = "s3cretw0rd"


@amounts(400, 15_000)
def test_any_text_is_a_target_or_refused_unquoted(amount):
    def check(given):
        scheme, user, before, after, rest = given
        url = f"{scheme}://{user}:{before}{SECRET}{after}@{rest}"
        for text in (url, scheme + before + rest):
            try:
                target = parse(text)
            except InvalidSettings as error:
                assert SECRET not in str(error)
                assert error.__cause__ is None
            else:
                assert SECRET not in target.address
                assert SECRET not in repr(target)

    schemes = ["redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster", "http", ""]
    addresses = ["h", "h:1/0", "h1:1,h2:2/main/3", "/run/a.sock?db=1", "[::1]:7", "h?ssl_ca_certs=/c"]
    ends = st.sampled_from(addresses) | any_text
    inside = st.sampled_from(["", "1", "6379/", "/", "@", "?", "#", "%2F", ":", ",", "1/0?", "[", "]"]) | any_text
    fuzz(amount, st.tuples(st.sampled_from(schemes), st.sampled_from(["", "user"]), inside, inside, ends), check)
