"""No URL turns the check of certificates off, and a file that it names is looked at before anything is sent."""

from __future__ import annotations

import pytest

from redis_sessions import InvalidSettings
from tests.over import over
from tests.tls.ways import KINDS


@KINDS
@over("scheme", ["rediss", "rediss+cluster", "rediss+sentinel"])
@over(
    "option",
    [
        "ssl_cert_reqs=none",
        "ssl_cert_reqs=optional",
        "ssl_cert_reqs=",
        "SSL_CERT_REQS=none",
        "ssl_check_hostname=false",
        "ssl_check_hostname=False",
        "ssl=false",
        "ssl_ca_path=/tmp",
        "ssl_min_version=771",
        "ssl_ciphers=NULL",
    ],
)
def test_no_url_turns_verification_off(kind, scheme, option):
    for query in (option, f"ssl_ca_certs=/dev/null&{option}"):
        with pytest.raises(InvalidSettings, match="not allowed"):
            kind.from_url(f"{scheme}://127.0.0.1:1{'/main' if 'sentinel' in scheme else ''}?{query}")


@KINDS
@over("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
@over("scheme", ["rediss", "rediss+cluster", "rediss+sentinel"])
def test_a_missing_file_is_reported_before_anything_is_sent(kind, scheme, option):
    for path in ("/nowhere/s3cret.pem", "", "/", "a%00b"):
        with pytest.raises(InvalidSettings, match=f"url names a file in {option} that can't be read") as caught:
            kind.from_url(f"{scheme}://127.0.0.1:1{'/main' if 'sentinel' in scheme else ''}?{option}={path}")
        assert "s3cret" not in str(caught.value)
