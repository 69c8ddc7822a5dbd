"""What there is and who runs it: `list` by its options, `leases`, `release`, `retime`, and a namespace without any keys."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redis_sessions import Lease, Place, SessionStore, StoreSettings, Turn
from redis_sessions.cli import conversations
from redis_sessions.cli import exit_codes as exits
from tests import test_cli_support
from tests.run.terminal import Terminal
from tests.test_cli_process import at_terminal, without_style
from tests.test_cli_support import DAY_MS, PROGRAM, Cli
from tests.test_cli_support import run as run_program

cli, url, no_variables = test_cli_support.cli, test_cli_support.url, test_cli_support.no_variables
HOUR_MS = DAY_MS // 24
PLACE = Place("build-7", "/home/agent/.claude", "/src/shop")
IDS = [f"{n}1111111-2222-4333-8444-555555555555" for n in range(3)]


@pytest.fixture
def store(cli: Cli) -> Iterator[SessionStore]:
    with SessionStore.from_url(cli.url, StoreSettings(namespace=cli.namespace)) as store:
        yield store


@pytest.fixture
def three(cli: Cli, store: SessionStore) -> None:
    """Sessions of two agents with one to three turns, and one without a record; all have been idle for a time."""
    for n, (key, agent) in enumerate((("acme/a", "claude"), ("acme/b", "codex"), ("other/c", "claude"))):
        for _ in range(n + 1):
            store.resume(key, lambda _, n=n: Turn(IDS[n], context_tokens=n), agent=agent, place=PLACE)
        # As if it had been saved so many hours ago.
        cli.raw.hincrby(cli.keys.record(key), "s", -n * HOUR_MS)
        cli.raw.pexpire(cli.keys.session_id(key), DAY_MS - n * HOUR_MS)
    cli.plant("bare", "id-1", px=DAY_MS // 2)


@pytest.mark.usefixtures("three")
class TestList:
    @pytest.mark.parametrize(
        ("options", "keys"),
        [
            (["--prefix", "acme/"], {"acme/a", "acme/b"}),
            (["--agent", "claude"], {"acme/a", "other/c"}),
            (["--idle-over", "90m"], {"other/c", "bare"}),
            (["--agent", "claude", "--idle-over", "30m"], {"other/c"}),
            (["--sort", "key"], ["acme/a", "acme/b", "bare", "other/c"]),
            (["--sort", "idle"], ["bare", "other/c", "acme/b", "acme/a"]),
            (["--sort", "expires"], ["bare", "other/c", "acme/b", "acme/a"]),
            (["--sort", "turns", "--limit", "2"], ["other/c", "acme/b"]),
        ],
    )
    def test_options(self, cli: Cli, options: list[str], keys: Any) -> None:
        found = [row["key"] for row in map(cli.result, cli("list", "--json", *options).stdout.splitlines())]
        assert type(keys)(found) == keys
        assert len(cli("list", *options).stdout.splitlines()) == len(keys)

    def test_a_limit_alone(self, cli: Cli) -> None:
        assert len(cli("list", "--limit", "3").stdout.splitlines()) == 3

    def test_too_many_to_sort_are_refused(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(conversations, "MAX_SORTED", 3)
        for options in ([], ["--limit", "4"]):
            assert "in memory" in cli("list", "--sort", "key", *options, code=exits.USAGE).stderr
        assert len(cli("list", "--sort", "key", "--limit", "3").stdout.splitlines()) == 3

    def test_what_is_known_is_shown(self, cli: Cli) -> None:
        rows = {row["key"]: row["record"] for row in map(cli.result, cli("list", "--json").stdout.splitlines())}
        assert rows["bare"] is None
        record = rows["acme/b"]
        assert record.pop("used_ms") >= record.pop("started_ms") > 0
        known = {"agent": "codex", "host": "build-7", "home": "/home/agent/.claude", "directory": "/src/shop"}
        assert record == known | {"turns": 2, "context_tokens": 1, "failures": 0, "complete": True}
        lines = {line.split("\t")[0]: line.split("\t")[4:] for line in cli("list").stdout.splitlines()}
        assert lines["acme/b"] == ["codex", "2", "build-7", "/home/agent/.claude", "/src/shop"]

    @pytest.mark.parametrize(
        ("columns", "head"),
        [
            (140, ["key", "session ID", "idle", "expires in", "agent", "turns", "place"]),
            (80, ["key", "session ID", "idle", "expires in", "agent", "turns"]),
            (72, ["key", "session ID", "idle", "expires in", "agent"]),
            (50, ["key", "session ID", "idle", "expires in"]),
        ],
    )
    def test_a_table_fits_the_terminal(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: int, head: list[str]
    ) -> None:
        monkeypatch.setattr("tests.test_cli_process.COLUMNS", columns)
        lines = without_style(at_terminal("list", "--sort", "key", *cli.options))
        assert re.split(r"  +", lines[0].strip()) == head
        assert all(len(line) <= columns for line in lines)
        if "place" in head:
            assert lines[1].endswith("build-7:/src/shop")


def test_a_namespace_without_keys_names_those_that_there_are(cli: Cli) -> None:
    cli.plant("k")
    wrong = ["--url", cli.url, "--namespace", f"{cli.namespace}x"]
    for command in ("list", "report"):
        assert f"no keys; there are {cli.namespace}" in run_program(command, *wrong).stderr.replace(
            f"{cli.namespace}x has ", ""
        )
    assert cli("list").stderr == ""


def held(store: SessionStore, key: str) -> Lease:
    lease = store.acquire(key)
    assert isinstance(lease, Lease)
    return lease


def test_leases_say_who_and_for_how_long(cli: Cli, store: SessionStore) -> None:
    assert (cli("leases").stdout, cli("leases", "--json").stdout) == ("", "")
    leases = {key: held(store, key) for key in ("a", "b\x1b")}
    store.acquire("c", "a token of their own")
    rows = {row.pop("key"): row for row in map(cli.result, cli("leases", "--json").stdout.splitlines())}
    assert all(0 < row.pop("remaining_ms") <= 30_000 for row in rows.values())
    mine = {"host": leases["a"].token.split(":")[0], "pid": os.getpid()}
    assert rows == {"a": mine, "b\x1b": mine, "c": {"host": None, "pid": None}}
    plain, table = cli("leases").stdout, at_terminal("leases", *cli.options)
    assert re.search(rf"^b\\x1b\t{mine['host']}\t{os.getpid()}\t[0-9]+$", plain, re.MULTILINE)
    assert re.search(r"^c\t-\t-\t[0-9]+$", plain, re.MULTILINE)
    lines = without_style(table)
    assert lines[0].split() == ["key", "host", "process", "lasts"]
    assert lines[-2] == "3 leases"
    for secret in (*(lease.token.split(":")[2] for lease in leases.values()), "of their own"):
        assert secret not in plain + table


def test_release_needs_a_yes(cli: Cli, store: SessionStore) -> None:
    lease = held(store, "k")
    assert "--yes" in cli("release", "k", code=exits.USAGE).stderr
    assert store.renew(lease)
    released = cli.json("release", "k", "--yes")
    assert 0 < released.pop("remaining_ms") <= 30_000
    assert released == {"key": "k", "host": lease.token.split(":")[0], "pid": os.getpid()}
    assert not store.renew(lease)
    assert cli.json("release", "k", "--yes", code=exits.PARTLY)["pid"] is None
    held(store, "k")
    assert f"process {os.getpid()} on " in cli("release", "k", "--yes").stdout


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", exits.DONE), (b"\n", exits.PARTLY)])
def test_at_a_terminal_it_asks(cli: Cli, store: SessionStore, answer: bytes, code: int) -> None:
    lease = held(store, "k")

    def start(*starter: str, **how: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*starter, *PROGRAM, "release", "k", *cli.options], start_new_session=True, **how)

    with Terminal(start) as terminal:
        terminal.type(answer)
        assert terminal.wait() == code
        assert "its run goes on" in terminal.shown.lower()
    assert store.renew(lease) == (code != exits.DONE)


class TestRetime:
    def test_it_needs_an_explicit_max_age(self, cli: Cli, tmp_path: Path) -> None:
        cli.plant("k")
        (tmp_path / "none.json").write_text('{"max_turns": 3}')
        for options in ([], ["--yes"], ["--dry-run"]):
            assert "--max-age" in cli("retime", *options, code=exits.USAGE).stderr
        assert "--max-age" in cli.runner("retime", "--yes", "--config", tmp_path / "none.json").stderr
        assert "--yes" in cli("retime", "--max-age", "1h", code=exits.USAGE).stderr
        assert cli.pttl_ms("k") > HOUR_MS

    def test_a_named_file_that_differs_from_the_environment_is_not_overruled_in_silence(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        cli.plant("k")
        config = tmp_path / "age.json"
        config.write_text(f'{{"session_max_age_ms": {HOUR_MS}}}')
        monkeypatch.setenv("REDIS_SESSIONS_MAX_AGE", "2m")
        after = cli("retime", "--config", config, "--yes", code=exits.USAGE)
        before = run_program("--config", config, "retime", *cli.options, "--yes", code=exits.USAGE)
        for said in (after.stderr, before.stderr):
            assert all(part in said for part in ("REDIS_SESSIONS_MAX_AGE is 2m", f"{config} says 1h", "--max-age"))
        assert cli.pttl_ms("k") > HOUR_MS
        assert cli.json("retime", "--config", config, "--yes", "--max-age", "3h")["shortened"] == 1
        monkeypatch.setenv("REDIS_SESSIONS_MAX_AGE", "60m")
        assert cli.json("retime", "--config", config, "--yes")["shortened"] == 1
        # Without a max age in the file, or with both from the environment, nothing is in doubt.
        monkeypatch.setenv("REDIS_SESSIONS_MAX_AGE", "2m")
        (tmp_path / "none.json").write_text("{}")
        assert cli.json("retime", "--config", tmp_path / "none.json", "--yes")["shortened"] == 1
        monkeypatch.setenv("REDIS_SESSIONS_CONFIG", str(config))
        assert cli.json("retime", "--yes")["left"] == 1

    @pytest.mark.parametrize("given", ["option", "environment", "config"])
    def test_what_it_sets_is_what_all_reports_use(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str
    ) -> None:
        cli.plant("k")
        options: list[Any] = ["--max-age", "1h"] if given == "option" else []
        if given == "config":
            (tmp_path / "age.json").write_text(f'{{"sessionMaxAgeMs": {HOUR_MS}}}')
            options = ["--config", tmp_path / "age.json"]
        with monkeypatch.context() as patched:
            if given == "environment":
                patched.setenv("REDIS_SESSIONS_MAX_AGE", "1h")
            assert cli.json("retime", "--yes", *options)["shortened"] == 1
        assert cli.raw.hget(cli.keys.settings(), "max_age_ms") == b"3600000"
        cli.raw.pexpire(cli.keys.session_id("k"), HOUR_MS // 2)
        [row] = map(cli.result, cli("list", "--json").stdout.splitlines())
        assert abs(row["idle_ms"] - HOUR_MS // 2) < 60_000
        assert cli.json("report")["idle_histogram"][-1]["up_to_ms"] == HOUR_MS
        assert cli.json("report", "--max-age", "2h")["idle_histogram"][-1]["up_to_ms"] == 2 * HOUR_MS
        # Its exit code is that of other checks.
        diagnosis = cli.result(cli.runner("doctor", "--json").stdout)
        ages = [each for each in diagnosis["findings"] if each["check"] == "max-age"]
        assert "1h" in ages[0]["found"]
        assert re.search(r'redis_sessions_idle_seconds_bucket\{le="3600.0",[^}]*\} 1.0', cli("metrics").stdout)


def test_counters_of_given_up_and_rotated_sessions(cli: Cli) -> None:
    cli.raw.mset({cli.keys.counter("gave_up_total"): 3, cli.keys.counter("rotations_total"): 4})
    found = cli.json("failures")
    assert (found["gave_up_total"], found["rotations_total"], cli("failures").stdout) == (3, 4, "0\n")
    shown = cli("report").stdout
    assert re.search(r"^  given up +3  of the fresh starts", shown, re.MULTILINE)
    assert re.search(r"^  rotated +4  of the fresh starts", shown, re.MULTILINE)
    assert "given up: 3, rotated: 4" in at_terminal("failures", *cli.options)
