"""What goes wrong: one line on stderr, nothing on stdout, the right exit code, and never a password."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from typer.testing import CliRunner

from redis_sessions import SessionStore, SessionStoreError, errors
from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.app import app
from redis_sessions.cli.options import Options
from redis_sessions.client import execute
from redis_sessions.server import EmbeddedServer
from tests import test_cli_support
from tests.servers import wait_until
from tests.test_cli_support import Cli, run

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables
hasty = test_cli_support.hasty

PASSWORD = "s3cret/x"
MALFORMED = [
    *(
        "redis://:{}@127.0.0.1:1/0",
        "redis://user:{}@127.0.0.1:1/0",
        "redis://{}@127.0.0.1:1/0",
        "redis://:{}",
        "{}",
        ":{}@h",
    ),
    *("http://:{}@h", "rediss://:{}@h:1/0", "redis://:{}@[::1", "redis://:{}@h:99999", "redis://:{}@h:1/0#x", "//:{}@h:1"),
    *("redis://h:1/{}", "redis://h:1/0?password={}", "redis://h:1/0#{}", "redis://:{}@h:1/0?x", "redis://h:{}/0"),
    *("redis+sentinel://:{}@h:1", "redis+cluster://:{}@h:1,h:2", "unix://:{}@/path", "unix://:{}", " redis://:{}@h"),
]
ARGUMENTS: list[list[str]] = [
    *(["get"], ["get", ""], ["get", "k" * 513], ["get", "k", "more"], ["get", "\udcff"], ["get", "--frob", "k"]),
    *(["set", "k"], ["set", "k", ""], ["set", "k", "two words"], ["set", "k", "x" * 257], ["delete", "k", "two words"]),
    *(
        ["list", "--max-age", age]
        for age in ("90", "", "h", "1.5ms", "-1h", "0s", "1y", "٣h", "9999999d", "1 h", "1.h", ".5h")
    ),
    *(["list", "--max-age", age] for age in ("30m1h", "1h1h", "1h  30m", "1h,30m", "1h30")),
    *([command, "--max-age", "1h", "k"] for command in ("get", "delete", "failures")),
    *(["--max-age", "1h", "get", "k"], ["--json", "docs"], ["--url", "redis://h", "agents"]),
    *(["get", "--namespace", namespace, "k"] for namespace in ("", "a b", "a*", "x" * 129)),
    *(["list", "--config", "/nowhere/agents.json"], ["import"], ["import", "/nowhere.json"], ["export", "/nowhere/x"]),
    *(
        ["import", "--assume-used-at", when, "/dev/null"]
        for when in ("1732250000", "-5", "0", "yesterday", "1900-01-01", "")
    ),
    *(
        ["failures", "--increment", "5"],
        ["list", "k"],
        ["report", "--json=1"],
        ["serve", "--port", "-1"],
        ["frob"],
        ["--frob"],
    ),
    *(
        ["serve", "--port", "0", "--socket", "/nowhere/x"],
        ["serve", "--dir", "/", "--port", "0"],
        ["demo", "--workers", "0"],
        ["import", "--rejects", "-", "/dev/null"],
        ["doctor", "--agent", "nobody"],
        *(["report", "--watch"], ["report", "--every", "10s"], ["report", "--watch", "--json", "--every", "10"]),
        ["report", "--watch", "--json", "--every", "999ms"],
    ),
]


@pytest.mark.parametrize("args", ARGUMENTS, ids=lambda args: " ".join(args)[:40].encode("ascii", "replace").decode())
def test_bad_input(args: list[str]) -> None:
    # Refused before anything is sent: there is no such server.
    run(*args, env={"REDIS_URL": "unix:///nowhere/sock"}, code=exits.USAGE)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a": 1', '{"session_max_age_ms": 0}', '{"sessionMaxAgeMs": "24h"}', "\udcff"]
)
def test_a_broken_config_file(tmp_path: Path, content: str) -> None:
    config = tmp_path / "agents.json"
    config.write_bytes(os.fsencode(content))
    assert f"--config: {config}" in run("list", "--config", config, code=exits.USAGE).stderr
    named = run("list", env={"REDIS_SESSIONS_CONFIG": str(config)}, code=exits.USAGE).stderr
    assert named.startswith(f"redis-sessions: REDIS_SESSIONS_CONFIG: {config}")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": "b",}', '"x"', "\udcff"])
def test_a_broken_legacy_file(cli: Cli, tmp_path: Path, content: str) -> None:
    file = tmp_path / "sessions\x1b[2J.json"
    file.write_bytes(os.fsencode(content))
    assert r"sessions\x1b[2J.json" in cli("import", file, code=exits.USAGE).stderr


def test_rejects_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"k": "ID-1"}')
    result = cli.runner("import", "--json", "--rejects", tmp_path / "nowhere/x", tmp_path / "in.json")
    assert (result.exit_code, result.stdout) == (exits.USAGE, "")
    assert "can't be written" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        *(["import", "in.json", "--rejects", "{}"], ["import", "{}", "--rejects", "r.json"], ["import", "{}"]),
        *(["export", "{}"], ["serve", "--port", "0", "--dir", "{}"], ["list", "--config", "{}"]),
        ["acl", "--generate", "{}"],
    ],
)
def test_a_path_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.json").write_text("{}")
    too_long = "x" * 300
    said = run(*(arg.format(too_long) for arg in args), env={"REDIS_URL": "unix:///nowhere"}, code=exits.USAGE).stderr
    assert too_long in said
    assert "File name too long" in said


def test_a_directory_of_runtimes_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    for directory in (tmp_path / "none", tmp_path / ("x" * 300)):
        said = run("agents", env={"REDIS_SESSIONS_AGENTS": str(directory)}, code=exits.USAGE).stderr
        assert f"{directory} can't be read (" in said


def test_only_output_that_is_lost_is_called_that(capsys: pytest.CaptureFixture[str]) -> None:
    named = FileNotFoundError(errno.ENOENT, "No such file or directory", "in.json")
    for error, said in (
        (named, "in.json can't be used (No such file or directory)"),
        (OSError(errno.EMFILE, "Too many open files"), "the system refuses (Too many open files)"),
    ):
        assert exits.guarded(Mock(side_effect=error)) == exits.USAGE
        assert capsys.readouterr().err == f"redis-sessions: {said}\n"


@pytest.mark.parametrize("template", MALFORMED)
def test_no_password_of_a_malformed_url_is_shown(template: str) -> None:
    malformed = template.format(PASSWORD)
    assert_no_password(run("get", "--url", malformed, "k", code=exits.USAGE))
    assert_no_password(run("get", "k", env={"REDIS_SESSIONS_URL": malformed}, code=exits.USAGE))


@pytest.mark.parametrize("template", [template for template in MALFORMED if "://" in template])
def test_no_password_of_a_url_in_a_wrong_place_is_shown(template: str) -> None:
    malformed = template.format(PASSWORD)
    for args in (
        ["get", "k", malformed],
        ["get", f"--urll={malformed}", "k"],
        ["list", "--max-age", malformed],
        ["get", "--namespace", malformed, "k"],
        ["import", "--assume-used-at", malformed, "/dev/null"],
        ["--url", malformed, "get", "k"],
    ):
        assert_no_password(run(*args, code=exits.USAGE))


@pytest.mark.parametrize(
    ("variable", "given", "command", "option"),
    [
        ("REDIS_SESSIONS_URL", "rdis://h", ["get", "k"], "--url"),
        ("REDIS_URL", "http://h", ["get", "k"], "--url"),
        ("REDIS_SESSIONS_NAMESPACE", "a*", ["get", "k"], "--namespace"),
        ("REDIS_SESSIONS_NAMESPACE", "a*", ["metrics"], "--namespace"),
        ("REDIS_SESSIONS_NAMESPACE", "a*", ["acl"], "--namespace"),
        ("REDIS_SESSIONS_MAX_AGE", "90", ["list"], "--max-age"),
        ("REDIS_SESSIONS_MAX_AGE", "0s", ["list"], "--max-age"),
    ],
)
def test_an_error_names_the_option_or_the_variable(variable: str, given: str, command: list[str], option: str) -> None:
    text = run(*command, option, given, env={variable: "unused"}, code=exits.USAGE).stderr
    assert text.startswith(f"redis-sessions: {option} ")
    assert run(*command, env={variable: given}, code=exits.USAGE).stderr == text.replace(option, variable, 1)
    assert run(option, given, *command, code=exits.USAGE).stderr == text


def test_a_person_is_told_that_it_still_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Options.settings
    monkeypatch.setattr(Options, "settings", lambda self: settings(self).model_copy(update={"deadline_ms": 2_000}))
    monkeypatch.setattr(execute, "_TELL_AFTER_S", 0)
    told, refused = CliRunner().invoke(app, ["get", "k", "--url", "unix:///nowhere"]).stderr.splitlines()
    assert told == "redis-sessions: /nowhere can't be reached (No such file or directory): trying for up to 2 s"
    assert refused.startswith("redis-sessions: /nowhere can't be reached (No such file or directory): check")


def test_nothing_is_said_of_a_connection_that_the_program_closes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it is interrupted while threads read: each finds its connection closed, and tries again."""
    monkeypatch.setattr(execute, "_TELL_AFTER_S", 0)
    said: list[str] = []
    with EmbeddedServer() as server, redis.Redis.from_url(server.url) as raw:
        raw.execute_command("CLIENT", "PAUSE", 600_000, "WRITE")

        def save() -> None:
            with suppress(SessionStoreError):
                store.set("k", "ID")

        def connections() -> Any:
            return raw.info("stats")["total_connections_received"]

        def close(store: SessionStore) -> None:
            before = connections()
            closes(store)
            wait_until(lambda: connections() > before or not thread.is_alive(), "it has tried again")

        closes = SessionStore.close
        monkeypatch.setattr(SessionStore, "close", close)
        with Options(url=server.url).store(said.append) as store:
            thread = Thread(target=save)
            thread.start()
            wait_until(lambda: raw.info("clients")["blocked_clients"] == 1, "it is sent")
        raw.execute_command("CLIENT", "UNPAUSE")
        thread.join()
    assert said == []


@pytest.mark.usefixtures("hasty")
def test_the_variable_that_names_a_server_that_is_away() -> None:
    unused = {"REDIS_SESSIONS_URL": "", "REDIS_URL": "unix:///nowhere/sock"}
    assert run("get", "k", env=unused, code=exits.UNREACHABLE).stderr.endswith("; REDIS_URL names this server\n")
    assert "names this" not in run("get", "k", "--url", "unix:///nowhere/sock", env=unused, code=exits.UNREACHABLE).stderr


def test_no_password_with_a_space_is_shown(cli: Cli) -> None:
    for args in (["import"], ["get"], ["get", "k"], []):
        assert_no_password(
            run(
                *args[:1],
                *(cli.options if args else ()),
                *args[1:],
                "redis://u:my s3cret@h",
                code=exits.PARTLY if args == ["get"] else exits.USAGE,
            )
        )


def assert_no_password(result: Any) -> None:
    assert "s3cret" not in result.output


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "args",
    [
        *(
            ["get", "k"],
            ["get", "--json", "k"],
            ["set", "k", "id"],
            ["delete", "k"],
            ["list"],
            ["list", "--json"],
            ["report"],
        ),
        *(
            ["doctor"],
            ["retime", "--max-age", "1h", "--yes"],
            ["leases"],
            ["release", "k", "--yes"],
            ["failures"],
            ["failures", "--increment"],
            ["export", "out.json"],
            ["import", "in.json"],
        ),
    ],
)
def test_redis_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.json").write_text('{"k": "id"}')
    away = f"unix://:s3cret%2Fx@{tmp_path}/away.sock"
    assert_no_password(run(*args, "--url", away, code=exits.UNREACHABLE))
    assert [path.name for path in tmp_path.iterdir()] == ["in.json"]


def test_redis_refuses_the_user(cli: Cli) -> None:
    cli.raw.execute_command("ACL", "SETUSER", "reader", "on", ">s3cret/x", "~*", "-@all", "+get", "+hello")
    place = cli.url.replace("//", "//reader:s3cret%2Fx@")
    run("get", "k", "--url", place, code=exits.PARTLY)
    assert "does not grant" in run("set", "k", "id", "--url", place, code=exits.UNREACHABLE).stderr
    wrong = run("get", "k", "--url", place.replace("x@", "y@"), code=exits.UNREACHABLE)
    assert "password" in wrong.stderr
    assert_no_password(wrong)


def test_every_error_has_its_exit_code() -> None:
    # Each kind has arguments of its own, which don't matter here.
    made = {
        kind: kind.__new__(kind, "what is wrong")
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.SessionStoreError)
    }
    codes = {kind.__name__: exits.code_of(error) for kind, error in made.items()}
    usage = {
        "FileNotWritten",
        "InvalidKey",
        "InvalidSessionID",
        "InvalidSettings",
        "LegacyFileError",
        "MissingExtra",
        "ServerError",
    }
    away = {"SessionStoreError", "StoreUnavailable", "AccessDenied", "KeysScattered", "CommandRefused"}
    assert {name for name, code in codes.items() if code == exits.USAGE} == usage
    assert {name for name, code in codes.items() if code == exits.UNREACHABLE} == away
    for error in made.values():
        assert exits.guarded(Mock(side_effect=error)) == exits.code_of(error)


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        exits.guarded(lambda: 1 // 0)


def test_a_message_is_one_line_without_a_login(capsys: pytest.CaptureFixture[str]) -> None:
    show.complain("redis://me:s3cret/x@h, redis:/me:my s3cret/x@h\nand \x1b[2J more")
    assert capsys.readouterr().err == "redis-sessions: redis://…@h, redis://…@h\\nand \\x1b[2J more\n"


def test_the_password_from_a_file(cli: Cli, tmp_path: Path) -> None:
    cli.raw.execute_command("ACL", "SETUSER", "filed", "on", ">s3cret/x", "~*", "+@all")
    place, file = cli.url.replace("//", "//filed@"), tmp_path / "password"
    file.write_text("s3cret/x\n")
    run("set", "k", "id", "--url", place, "--namespace", cli.namespace, "--password-file", file)
    result = run("get", "k", "--url", place, "--namespace", cli.namespace, env={"REDIS_SESSIONS_PASSWORD_FILE": str(file)})
    assert result.stdout == "id\n"
    file.write_text("s3cret/y")
    assert_no_password(run("get", "k", "--url", place, "--password-file", file, code=exits.UNREACHABLE))


@pytest.mark.parametrize("content", [b"", b"\n", b"s3cret\ns3cret\n", b"s3cret\xff", None])
def test_a_file_without_a_password_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    for options, variables, named in (
        (["--password-file", file], {}, "--password-file"),
        ([], {"REDIS_SESSIONS_PASSWORD_FILE": str(file)}, "REDIS_SESSIONS_PASSWORD_FILE"),
    ):
        result = run("get", "k", "--url", "redis://user@127.0.0.1:1/0", *options, env=variables, code=exits.USAGE)
        assert result.stderr.startswith(f"redis-sessions: {named}: {file} ")
        assert_no_password(result)


def test_a_second_password_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret")
    result = run("get", "k", "--url", "redis://user:s3cret@127.0.0.1:1/0", "--password-file", file, code=exits.USAGE)
    assert "has a password, and another one was given separately" in result.stderr
    assert_no_password(result)
