"""The commands on conversations and the store, run in this process against a real server."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli.app import app
from redis_sessions.demo.processes import DemoError
from redis_sessions.operations import text
from tests import test_cli_support
from tests.test_cli_support import DAY_MS, EVIL_KEYS, Cli, run

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables

COMMANDS = ["run", "get", "set", "delete", "list", "leases", "release", "report", "import", "export", "doctor", "retime"]
COMMANDS += ["failures", "agents", "acl", "metrics", "docs", "serve", "demo"]


def test_set_writes_the_bare_id_with_the_whole_max_age(cli: Cli) -> None:
    result = cli("set", "--max-age", "90m", "acme/shop#42", "id-1")
    assert (result.stdout, result.stderr) == ("", "")
    assert cli.value("acme/shop#42") == b"id-1"
    assert 0 <= 90 * 60_000 - cli.pttl_ms("acme/shop#42") < 60_000
    assert cli.json("set", "acme/shop#42", "id-2") == {"key": "acme/shop#42", "session_id": "id-2", "expires_in_ms": DAY_MS}


def test_get_prints_the_bare_id(cli: Cli) -> None:
    cli.plant("k", "id-1")
    result = cli("get", "k")
    assert (result.stdout, result.stderr) == ("id-1\n", "")
    found = cli.json("get", "k")
    assert found == {"key": "k", "session_id": "id-1", "expires_in_ms": found["expires_in_ms"]}
    assert 0 <= DAY_MS - found["expires_in_ms"] < 60_000


def test_get_of_a_missing_key(cli: Cli) -> None:
    result = cli("get", "nobody", code=exits.PARTLY)
    assert (result.stdout, result.stderr) == ("", "redis-sessions: 'nobody' has no live session ID\n")
    assert cli.json("get", "nobody", code=exits.PARTLY) == {"key": "nobody", "session_id": None, "expires_in_ms": None}


def test_get_of_a_session_without_ttl(cli: Cli) -> None:
    cli.plant("k", "id-1", px=None)
    assert cli.json("get", "k")["expires_in_ms"] is None


def test_get_of_an_invalid_value(cli: Cli) -> None:
    cli.plant("k", "--resume me")
    cli.raw.lpush(cli.keys.session_id("list"), "x")
    for key, options in (("k", []), ("k", ["--json"]), ("list", []), ("list", ["--json"])):
        result = cli("get", *options, key, code=exits.PARTLY)
        assert result.stdout == ""
        assert re.fullmatch(rf"redis-sessions: [^\n]*'{key}'[^\n]*\n", result.stderr)


def test_delete(cli: Cli) -> None:
    cli.plant("k", "id-1")
    assert "another session ID" in cli("delete", "k", "id-2", code=exits.PARTLY).stderr
    assert cli.json("delete", "k", "id-2", code=exits.PARTLY) == {"key": "k", "deleted": False}
    result = cli("delete", "k", "id-1")
    assert (result.stdout, result.stderr, cli.value("k")) == ("", "", None)
    assert "no live session ID" in cli("delete", "k", code=exits.PARTLY).stderr
    cli.plant("k", "id-1")
    assert cli.json("delete", "k") == {"key": "k", "deleted": True}


def test_a_key_that_starts_with_a_dash(cli: Cli) -> None:
    cli("set", "--", "-key", "id-1")
    assert cli("get", "--", "-key").stdout == "id-1\n"
    cli("delete", "--", "-key")
    cli("get", "-key", code=exits.USAGE)


def test_list(cli: Cli) -> None:
    assert cli("list").stdout == ""
    cli.plant("k", "id-1", px=DAY_MS // 2)
    cli.plant("forever", "id-2", px=None)
    cli.plant("bad", "--resume me")
    rows = {row["key"]: row for row in map(cli.result, cli("list", "--json").stdout.splitlines())}
    assert rows.keys() == {"k", "forever"}
    assert list(rows["k"]) == ["key", "session_id", "idle_ms", "expires_in_ms", "record"]
    unknown = dict.fromkeys(("idle_ms", "expires_in_ms", "record"))
    assert rows["forever"] == {"key": "forever", "session_id": "id-2"} | unknown
    assert rows["k"]["idle_ms"] + rows["k"]["expires_in_ms"] == DAY_MS
    assert 0 <= DAY_MS // 2 - rows["k"]["expires_in_ms"] < 60_000
    lines = sorted(line.split("\t") for line in cli("list").stdout.splitlines())
    assert lines[0] == ["forever", "id-2", *("-" * 7)]
    assert lines[1][:2] == ["k", "id-1"]
    assert sum(map(int, lines[1][2:4])) == DAY_MS


def test_report(cli: Cli) -> None:
    cli.plant("k", px=DAY_MS // 2)
    cli.plant("forever", px=None)
    cli.plant("older", px=3 * DAY_MS)
    cli.plant("bad\x1b[2J", "--resume me")
    cli.raw.mset({cli.keys.counter(name): count for name, count in (("resume_failures_total", 1), ("resumes_total", 3))})
    report = cli.json("report")
    assert list(report) == [
        *("live", "no_ttl", "over_max_age", "invalid", "invalid_examples", "soonest_expiry_ms", "idle_histogram"),
        *("counters", "near_scheme", "near_examples", "approximate", "scan_ms", "records"),
    ]
    assert [report[name] for name in ("live", "no_ttl", "over_max_age", "invalid")] == [3, 1, 1, 1]
    assert report["counters"] == {
        "resume_failures_total": 1,
        "resumes_total": 3,
        "fresh_starts_total": 0,
        "gave_up_total": 0,
        "rotations_total": 0,
    }
    assert {"up_to_ms": DAY_MS // 2, "count": 0} in report["idle_histogram"]
    result = cli("report")
    assert result.stderr == ""
    assert re.search(r"^  live +3  the next expires in 11h 59m$", result.stdout, re.MULTILINE)
    assert re.search(r"^  resume failures +1  25.0% of 4 attempts to resume$", result.stdout, re.MULTILINE)
    assert re.search(r"^  12h to 24h +1  █{32}$", result.stdout, re.MULTILINE)
    assert re.search(r"%1B\[2J} +no valid session ID$", result.stdout, re.MULTILINE)
    assert "\x1b" not in result.stdout
    assert not re.search(r" $", result.stdout, re.MULTILINE)


def test_an_approximate_scan_is_reported(cli: Cli, tmp_path: Path) -> None:
    cli.plant("k")
    cli.raw.execute_command("ACL", "SETUSER", "noinfo", "on", "nopass", "~*", "+@all", "-info")
    limited = ["--url", cli.url.replace("//", "//noinfo:x@"), "--namespace", cli.namespace]
    assert "approximate" in run("report", *limited).stderr
    result = run("report", "--json", *limited)
    assert json.loads(result.stdout)["approximate"]
    assert "approximate" in result.stderr
    for command in (["export", tmp_path / "out.json"], ["list"], ["list", "--json"]):
        assert "approximate" in run(*command, *limited, code=exits.PARTLY).stderr


def test_failures(cli: Cli) -> None:
    assert cli("failures").stdout == "0\n"
    assert cli("failures", "--increment").stdout == "1\n"
    others = {"gave_up_total": 0, "rotations_total": 0}
    assert cli.json("failures", "--increment") == {"resume_failures_total": 2, **others}
    assert cli.json("failures") == {"resume_failures_total": 2, **others}
    cli.raw.set(cli.keys.counter("resume_failures_total"), "many")
    assert "is not an integer" in cli("failures", code=exits.PARTLY).stderr
    assert re.search(
        r"^  resume failures +-  not an integer: see redis-sessions doctor$", cli("report").stdout, re.MULTILINE
    )
    assert cli.json("report")["counters"]["resume_failures_total"] is None


@pytest.mark.parametrize("name", ["gave_up_total", "rotations_total"])
def test_failures_say_which_other_counter_is_not_a_number(cli: Cli, name: str) -> None:
    cli.raw.set(cli.keys.counter(name), "many")
    said = f"redis-sessions: counter {name} is not an integer: redis-sessions doctor shows how to fix it\n"
    for options, stdout in (([], "0\n"), (["--increment"], "1\n")):
        result = cli("failures", *options, code=exits.PARTLY)
        assert (result.stdout, result.stderr) == (stdout, said)
    assert cli.json("failures", code=exits.PARTLY)[name] is None


@pytest.mark.parametrize("key", EVIL_KEYS)
def test_a_key_cannot_control_a_terminal(cli: Cli, tmp_path: Path, key: str) -> None:
    cli("set", "--", key, "id-1")
    assert cli.json("get", "--", key)["key"] == key
    for shown in (cli("list"), cli("report"), cli("get", "--", f"{key}!", code=exits.PARTLY)):
        assert all(line.isprintable() or "\t" in line for line in shown.output.splitlines())
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown.output)
    [line] = cli("list").stdout.splitlines()
    assert line.split("\t")[0] == text.safe(key)
    (tmp_path / "in.json").write_text(json.dumps({key: "--bad"}))
    result = cli("import", tmp_path / "in.json", code=exits.PARTLY)
    assert text.safe(key) in result.stdout
    assert all(line.isprintable() for line in result.output.splitlines())
    assert [json.loads(line)["key"] for line in cli("list", "--json").stdout.splitlines()] == [key]


def test_safe_text_is_one_printable_line_and_otherwise_unchanged() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert text.safe(every).isprintable()
    assert text.safe("\x1b[31m\u202e\u200b\n\x9b") == r"\x1b[31m\u202e\u200b\n\x9b"
    assert text.safe("[red] 日本語 \\ %") == "[red] 日本語 \\ %"


def test_durations() -> None:
    expected = {0: "0ms", 999: "999ms", 1_000: "1s", 59_999: "59s", 60_000: "1m", 3_599_000: "59m 59s", DAY_MS: "24h"}
    expected |= {DAY_MS - 1: "23h 59m", 2 * DAY_MS: "2d", 9 * DAY_MS + 3_600_000: "9d 1h"}
    assert {ms: text.duration(ms) for ms in expected} == expected


@pytest.mark.parametrize("name", ["session_max_age_ms", "sessionMaxAgeMs"])
def test_the_max_age_comes_from_the_config_file(cli: Cli, tmp_path: Path, name: str) -> None:
    config = tmp_path / "agents.json"
    config.write_text(json.dumps({name: 60_000, "agents": []}))
    assert cli.json("set", "--config", config, "k", "id-1")["expires_in_ms"] == 60_000
    assert 0 < cli.pttl_ms("k") <= 60_000
    assert cli.json("set", "--config", config, "--max-age", "500ms", "k", "id-1")["expires_in_ms"] == 500


def test_a_config_file_without_a_max_age_is_reported(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "agents.json"
    config.write_text('{"session_max_age": 60000}')
    shown = cli("set", "--config", config, "k", "id-1")
    assert shown.stderr.startswith(f"redis-sessions: {config} has no session_max_age_ms at its top level")
    assert cli.pttl_ms("k") > 60_000
    assert "has no" not in cli("set", "--config", config, "--max-age", "1h", "k", "id-1").stderr


def test_common_options_from_the_environment(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "agents.json"
    config.write_text('{"session_max_age_ms": 60000}')
    monkeypatch.setenv("REDIS_SESSIONS_URL", cli.url)
    monkeypatch.setenv("REDIS_SESSIONS_NAMESPACE", cli.namespace)
    monkeypatch.setenv("REDIS_SESSIONS_CONFIG", str(config))
    assert json.loads(run("set", "--json", "k", "id-1").stdout)["expires_in_ms"] == 60_000
    assert cli.value("k") == b"id-1"
    monkeypatch.setenv("REDIS_SESSIONS_MAX_AGE", "2m")
    assert json.loads(run("set", "--json", "k", "id-1").stdout)["expires_in_ms"] == 120_000
    assert json.loads(run("set", "--json", "--max-age", "3m", "k", "id-1").stdout)["expires_in_ms"] == 180_000


def test_the_url_variables(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.plant("k", "id-1")
    monkeypatch.setenv("REDIS_URL", cli.url)
    assert run("get", "k", "--namespace", cli.namespace).stdout == "id-1\n"
    monkeypatch.setenv("REDIS_SESSIONS_URL", "redis+nonsense://")
    run("get", "k", "--namespace", cli.namespace, code=exits.USAGE)
    assert cli("get", "k").stdout == "id-1\n"
    monkeypatch.setenv("REDIS_SESSIONS_URL", "")
    assert run("get", "k", "--namespace", cli.namespace).stdout == "id-1\n"


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        *(("1ms", 1), ("30s", 30_000), ("90m", 5_400_000), ("24h", DAY_MS), ("7d", 7 * DAY_MS), ("2w", 14 * DAY_MS)),
        *(
            ("1.5h", 5_400_000),
            ("0.1s", 100),
            ("1h30m", 5_400_000),
            ("3d 4h", 76 * 3_600_000),
            ("1w1d1h1m1s1ms", 694_861_001),
        ),
    ],
)
def test_max_ages(cli: Cli, text: str, ms: int) -> None:
    assert cli.json("set", "--max-age", text, "k", "id-1")["expires_in_ms"] == ms


@given(st.integers(0, 10**11))
def test_a_duration_for_people_can_be_given_again(ms: int) -> None:
    shown_ms = text.parse_duration_ms(text.duration(ms), "it")
    assert 0 <= ms - shown_ms < max(1_000, ms // 24)
    assert text.parse_duration_ms(text.exact_duration(ms), "it") == ms


def test_common_options_stand_before_the_command_or_after_it(cli: Cli) -> None:
    cli.plant("k", "id-1")
    before = run(*cli.options, "get", "k")
    assert before.stdout == "id-1\n"
    # The last counts, wherever it stands.
    assert run("--url", "redis://nowhere:1", "--namespace", "other", "get", *cli.options, "k").stdout == "id-1\n"
    assert run("--namespace", "other", *cli.options, "get", "k").stdout == "id-1\n"
    assert cli.result(run("--json", *cli.options, "get", "k").stdout)["session_id"] == "id-1"
    assert cli.result(
        run("--max-age=90m", "--url", cli.url, "set", f"--namespace={cli.namespace}", "--json", "k", "x").stdout
    )
    assert 0 <= 90 * 60_000 - cli.pttl_ms("k") < 60_000
    lines = run(*cli.options, "--namespace", "other", "metrics", "--namespace", "third").stdout
    assert 'claude_session_resume_failures_total{namespace="other"}' in lines
    assert 'claude_session_resume_failures_total{namespace="third"}' in lines


@pytest.mark.parametrize(("before", "after"), [("one two", ""), ("", "one two"), ("one", "two")])
def test_metrics_and_acl_take_every_namespace_wherever_it_stands(cli: Cli, before: str, after: str) -> None:
    first, then = ([f"--namespace={name}" for name in words.split()] for words in (before, after))
    assert "~one:* ~two:* " in run(*first, "acl", *then).stdout
    shown = run(*first, "metrics", *then, "--url", cli.url).stdout
    assert all(f'redis_sessions_up{{namespace="{name}"}} 1.0' in shown for name in ("one", "two"))


def test_json_keeps_unicode_and_escapes_what_is_not_printable(cli: Cli) -> None:
    cli.plant("日本😀\x9b\u202e\udcff".encode("utf-8", "replace").decode(), "id-1")
    for shown in (cli("list", "--json").stdout, cli("report", "--json", "--namespace", cli.namespace).stdout):
        assert shown.rstrip("\n").isprintable()
    [line] = cli("list", "--json").stdout.splitlines()
    assert '"key": "日本😀\\u009b\\u202e?"' in line


def test_the_namespace_of_the_environment_is_that_of_every_command(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_SESSIONS_NAMESPACE", "one two")
    assert "~one:* ~two:* " in run("acl").stdout
    shown = run("metrics", "--url", cli.url).stdout
    assert all(f'redis_sessions_up{{namespace="{name}"}} 1.0' in shown for name in ("one", "two"))


def test_demo_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    run_demo = Mock(side_effect=DemoError("as it did not run"))
    monkeypatch.setitem(sys.modules, "redis_sessions.demo.main", SimpleNamespace(run_demo=run_demo))
    monkeypatch.setenv("REDIS_URL", "redis://in-use/0")
    run("demo", code=1)
    run("demo", "--url", "redis://h/1", "--workers", "2", "--turns", "9", "--json", code=1)
    assert run_demo.call_args_list == [
        call(url=None, workers=4, turns=60),
        call(url="redis://h/1", workers=2, turns=9),
    ]


def test_version_and_help() -> None:
    assert re.fullmatch(r"redis-sessions \S.*\n", run("--version").stdout)
    shown = run("--help").stdout
    assert run("-h").stdout == CliRunner().invoke(app, []).stdout == shown
    assert run("get", "-h").stdout == run("get", "--help").stdout
    assert CliRunner().invoke(app, []).exit_code == exits.USAGE
    assert all(re.search(rf"^  {name} +[A-Z].*[^.]\.$", shown, re.MULTILINE) for name in COMMANDS)


def test_every_command_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_SESSIONS_URL", "redis://:s3cret@127.0.0.1/0")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert list(commands) == COMMANDS
    for name, command in commands.items():
        shown = run(name, "--help").stdout
        assert shown.startswith(f"Usage: redis-sessions {name} [OPTIONS]")
        assert f"\n  Examples:\n    redis-sessions {name}" in shown
        assert "\n  Exit codes:\n    0 " in shown
        assert all(param.help for param in command.params)
        assert "s3cret" not in shown
        assert "\x1b" not in shown
