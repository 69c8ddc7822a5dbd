"""What the doctor can't see is unknown, never ok; and its command."""

from __future__ import annotations

import json
import re

import pytest

from redis_sessions import StoreSettings, StoreUnavailable
from redis_sessions.cli import exit_codes as exits
from redis_sessions.doctor.findings import LOOK_RIGHTS
from tests.doctor.support import CHECKS, NEEDED, found, healthy, troubles
from tests.test_cli_support import run

pytestmark = pytest.mark.plants_immortal_keys


def test_fakeredis_answers_few_questions(places):
    diagnosis = places.get("fakeredis").sync(StoreSettings()).doctor()
    unknown = [*CHECKS[:9], "login", "replay"]
    assert troubles(diagnosis) == dict.fromkeys(unknown, "unknown") | {
        "commands": "warning",
        "rights": "warning",
        "client": "unknown",
    }


def test_refused_questions_are_unknown(tmp_path):
    with healthy(tmp_path / "data", rights=NEEDED) as (store, _):
        diagnosis = store.doctor()
        unseen = [*CHECKS[:9], "commands", "login", "replay", "rights", "tls", "no-ttl", "max-age", "values"]
        unseen += ["names", "leases"]
        assert troubles(diagnosis) == dict.fromkeys(unseen, "unknown")
        assert "does not grant" in found(diagnosis, "memory").found
        assert LOOK_RIGHTS in found(diagnosis, "memory").remedy
    with healthy(tmp_path / "data", rights=f"+get +ping +select {LOOK_RIGHTS}") as (store, _):
        unseen = ["commands", "round-trip", "clock", "no-ttl", "max-age", "values", "names", "leases", "counters"]
        assert troubles(store.doctor()) == dict.fromkeys(unseen, "unknown")
    with healthy(tmp_path / "data", rights=LOOK_RIGHTS) as (store, _), pytest.raises(StoreUnavailable):
        store.doctor()


def test_the_command(tmp_path):
    with healthy(tmp_path / "data", maxmemory_policy="allkeys-lru") as (_, raw):
        port = raw.get_connection_kwargs()["port"]
        url = ["--url", f"redis://sessions:s3cret%2Fx@127.0.0.1:{port}"]
        shown = run("doctor", *url, code=exits.PARTLY)
        assert shown.stderr == ""
        lines = shown.stdout.splitlines()
        assert "broken  eviction     allkeys-lru evicts counters, too" in lines
        [remedy] = [line.strip() for line in lines if line.strip().startswith("fix: ")]
        assert remedy == "fix: redis-cli CONFIG SET maxmemory-policy volatile-ttl"
        assert lines[-1] == f"1 broken, 0 warnings, 0 unknown, {len(CHECKS) - 1} ok"
        result = json.loads(run("doctor", "--json", *url, code=exits.PARTLY).stdout)
        assert list(result) == ["namespace", "at_ms", "findings", "broken", "warnings", "unknown", "ok"]
        assert [finding["check"] for finding in result["findings"]] == CHECKS
        assert {tuple(finding) for finding in result["findings"]} == {("check", "status", "found", "why", "remedy")}
        raw.config_set("maxmemory-policy", "volatile-ttl")
        shown = run("doctor", "--agent", "agentcore", "--max-age", "15m", *url)
        assert re.search(r"^ok +agent +max age 15m; agentcore keeps a session 15m$", shown.stdout, re.MULTILINE)
        raw.config_set("maxmemory-policy", "volatile-lru")
        assert run("doctor", *url).stdout.endswith(f"0 broken, 1 warning, 0 unknown, {len(CHECKS) - 1} ok\n")


def test_strict(tmp_path):
    with healthy(tmp_path / "data") as (_, raw):
        url = ["--url", f"redis://sessions:s3cret%2Fx@127.0.0.1:{raw.get_connection_kwargs()['port']}"]
        run("doctor", "--strict", *url)
        raw.config_set("maxmemory-policy", "volatile-lru")
        run("doctor", *url)
        run("doctor", "--strict", *url, code=exits.PARTLY)
        raw.config_set("maxmemory-policy", "volatile-ttl")
        raw.execute_command("ACL", "SETUSER", "sessions", "-config|get")
        run("doctor", *url)
        run("doctor", "--strict", *url, code=exits.PARTLY)
