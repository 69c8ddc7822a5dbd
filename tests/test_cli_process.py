"""The program as a process: pipes, signals, terminals, and the server it can run."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from rich.cells import cell_len

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import tables
from redis_sessions.operations.scan import SessionRow
from tests import test_cli_support
from tests.test_cli_support import DAY_MS, EVIL_KEYS, Cli, as_nobody, spawn

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables
hasty = test_cli_support.hasty

DEADLINE_S = 30.0
COLUMNS = 100


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert b"Traceback" not in err
    return process.returncode, (out or b"").decode(), err.decode()


@pytest.mark.usefixtures("hasty")
def test_python_m_runs_it(cli: Cli) -> None:
    cli.plant("k", "id-1")
    assert finish(spawn("get", *cli.options, "k")) == (exits.DONE, "id-1\n", "")
    assert finish(spawn("get", *cli.options, "nobody"))[0] == exits.PARTLY
    assert finish(spawn("get", *cli.options, ""))[0] == exits.USAGE
    assert finish(spawn("get", "--url", "unix:///nowhere/sock", "k"))[0] == exits.UNREACHABLE


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_without_the_cli_extra_it_says_what_to_install(module: str) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; from redis_sessions.cli import main; main()"

    def run(*arguments: str) -> tuple[int, str, str]:
        words = [sys.executable, "-c", program, *arguments]
        return finish(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE))

    code, out, err = run("get", "k")
    assert (code, out) == (exits.USAGE, "")
    assert re.fullmatch(r"[^\n]*pip install 'redis-sessions\[cli\]'\n", err)
    code, out, err = run("--help")
    assert (code, err) == (exits.DONE, "")
    assert out.startswith("Usage: redis-sessions")
    assert "pip install 'redis-sessions[cli]'" in out


def test_help_does_not_import_rich_or_the_server() -> None:
    program = (
        "import sys; from redis_sessions.cli.app import app\n"
        "try: app(['get', '--help'])\n"
        "except SystemExit: print(*(name for name in sys.modules if name in ('rich.console', 'redis_sessions.server')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=DEADLINE_S)
    assert done.stdout.splitlines()[-1] == b""


def test_a_reader_that_stops_early(cli: Cli) -> None:
    pipe = cli.raw.pipeline(transaction=False)
    for number in range(2_000):
        pipe.set(cli.keys.session_id(f"{number}/{'x' * 400}"), "id-1", px=DAY_MS)
    pipe.execute()
    for command in (["list"], ["list", "--json"], ["export", "-"]):
        process = spawn(*command, *cli.options)
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        assert finish(process) == (exits.DONE, "", "")


@pytest.mark.parametrize(
    "args",
    [
        *(["get", "k"], ["get", "absent"], ["get", "--json", "absent"], ["list"], ["export", "-"], ["--help"]),
        *(
            pytest.param(args, marks=pytest.mark.long)
            for args in (["report"], ["report", "--json"], ["failures"], ["--version"])
        ),
    ],
)
def test_a_closed_pipe(cli: Cli, args: list[str]) -> None:
    cli.plant("k")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as broken:
        process = spawn(*args, *([] if args[0].startswith("-") else cli.options), stdout=broken)
        code, _, err = finish(process)
    # It is its own exit code.
    assert code == (exits.PARTLY if "absent" in args else exits.DONE)
    assert re.sub("redis-sessions: (exported 1 session|'absent' has no live session ID)\n", "", err) == ""


@pytest.mark.usefixtures("hasty")
def test_a_closed_pipe_of_metrics_while_redis_is_away() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as broken:
        # More than the buffers hold.
        names = [word for number in range(200) for word in ("--namespace", f"n{number}")]
        code, _, _ = finish(spawn("metrics", "--json", "--url", "unix:///nowhere", *names, stdout=broken))
    assert code == exits.UNREACHABLE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk(cli: Cli) -> None:
    cli.plant("k")
    with Path("/dev/full").open("wb") as full:
        code, _, err = finish(spawn("get", *cli.options, "k", stdout=full))
    assert (code, err) == (exits.PARTLY, "redis-sessions: the output can't be written (No space left on device)\n")


def test_an_encoding_that_lacks_the_characters(cli: Cli) -> None:
    cli.plant("日本語", px=DAY_MS // 2)
    for args in (["list"], ["report"], ["get", "--", "日本"]):
        _, out, err = finish(spawn(args[0], *cli.options, *args[1:], env={"PYTHONIOENCODING": "ascii"}))
        assert (out + err).isascii()
        assert args[0] != "report" or f"  {'#' * 32}\n" in out


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # After a second without a reply it would say that it still tries.
        monkeypatch.setattr(test_cli_support, "PROGRAM", test_cli_support.program_with(socket_timeout_ms=20_000))
        process = spawn("get", "--url", f"redis://127.0.0.1:{silent.getsockname()[1]}/0", "k")
        connection, _ = silent.accept()
        connection.recv(1)
        process.send_signal(signal.SIGINT)
        assert finish(process) == (exits.INTERRUPTED, "", "")
        connection.close()


def at_terminal(*args: str | Path, **options: Any) -> str:
    """What a terminal shows of a program whose stdout and stderr it is."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, COLUMNS))
    environment = {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    with os.fdopen(ours, "rb", buffering=0) as screen:
        process = spawn(*args, env=environment, **{"stdout": theirs, "stderr": theirs, **options})
        os.close(theirs)
        shown = b""
        give_up_at_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < give_up_at_s and select.select([screen], [], [], DEADLINE_S)[0]:
            try:
                chunk = screen.read(65_536)
            except OSError:  # on Linux the end of a terminal is an error
                break
            if not chunk:
                break
            shown += chunk
        at_terminal.out, _ = process.communicate(timeout=DEADLINE_S)  # type: ignore[attr-defined]
    return shown.decode()


def without_style(shown: str) -> list[str]:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n")
    return [line.rstrip() for line in plain.split("\n")]


def test_a_table_at_a_terminal(cli: Cli) -> None:
    for key in EVIL_KEYS:
        cli.plant(key, "0190c3e2-5b1f-7a44-9d1e-3f6f0b8f2a11", px=DAY_MS // 2 + 999)
    cli.plant("long/" + "x" * 120, px=None)
    shown = at_terminal("list", *cli.options)
    lines = without_style(shown)
    assert re.fullmatch(r"key +session ID +idle  expires in", lines[0])
    assert r"\x1b[2J\x1b]0;owned\x07" in {line.split("  ")[0] for line in lines}
    assert "[red]loud[/red]" in {line.split("  ")[0] for line in lines}
    assert sum(bool(re.search(r" (11h 59m|12h) +(11h 59m|12h)$", line)) for line in lines) == len(EVIL_KEYS)
    assert lines[-2] == "7 live sessions"
    assert "\u202e" not in shown
    assert "\x07" not in shown
    assert all(len(line) <= COLUMNS for line in lines)
    assert "".join(lines).count("x") > 120


def test_a_long_key_does_not_widen_what_follows_the_table(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [SessionRow(f"k{number}", "id-1", 1_000, 2_000, 0) for number in range(tables.ROWS_IN_TABLE)]
    printed: list[str] = []
    monkeypatch.setattr(tables, "is_terminal", lambda _: True)
    monkeypatch.setattr(tables, "put", printed.append)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    tables.show_sessions([*rows, SessionRow("日本" * 40, "x" * 256, 1_000, 2_000, 0), rows[0]])
    width = max(map(cell_len, printed))
    assert width == cell_len(printed[-1]) <= COLUMNS
    assert sum(line.count("日本") for line in printed) == 40
    assert sum(line.count("x") for line in printed) == 256
    assert [line.split()[-2:] for line in printed if line.endswith("2s")] == [["1s", "2s"]] * 2


COMPLETED = [
    (["agents", "cla"], {"claude", "claude-agent-sdk"}),
    (["doctor", "--agent", "cod"], {"codex"}),
    (["--url", "redis://h", "docs", "spe"], {"speed"}),
    (["run", "k", "--agent", "gem"], {"gemini"}),
    (["get", "--name"], {"--namespace"}),
    (["re"], {"release", "report", "retime"}),
]


def test_completion_in_bash(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "redis-sessions").write_text(f'#!/bin/sh\nexec {sys.executable} -m redis_sessions "$@"\n')
    (programs / "redis-sessions").chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    script = 'eval "$(redis-sessions --show-completion)"\n'
    for words, _ in COMPLETED:
        typed = " ".join(f"'{word}'" for word in ["redis-sessions", *words])
        script += f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}\n"
        script += '_redis_sessions_completion redis-sessions; echo "${COMPREPLY[@]}"\n'
    deadline_s = DEADLINE_S * (1 + len(COMPLETED))  # each is a process
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=deadline_s, check=False
    )
    assert [set(line.split()) for line in done.stdout.splitlines()] == [expected for _, expected in COMPLETED]
    assert done.stderr == ""


def test_a_list_longer_than_a_table_keeps_its_columns(cli: Cli) -> None:
    pipe = cli.raw.pipeline(transaction=False)
    for number in range(1_300):
        pipe.set(cli.keys.session_id(f"{'日本' if number % 2 else 'acme'}#{number:04}"), "id-1", px=DAY_MS // 2 + 999)
    pipe.execute()
    lines = without_style(at_terminal("list", *cli.options))
    assert lines[-2] == "1,300 live sessions"
    assert (
        len([line for line in lines if re.fullmatch(r"(日本|acme)#\d{4}  id-1 +(11h 59m|12h) +(11h 59m|12h)", line)])
        == 1_300
    )


def test_the_report_at_a_terminal(cli: Cli) -> None:
    cli.plant("k", px=DAY_MS // 2)
    shown = at_terminal("report", *cli.options)
    assert "scanning" in shown
    assert "━" in shown
    assert "\x1b[1m" in shown
    assert "█" * 32 in shown


def test_an_import_at_a_terminal(cli: Cli, tmp_path: Path) -> None:
    entries = {f"k{number}": {"id": "id-1", "last_used_at": time.time_ns() // 1_000_000} for number in range(1_200)}
    (tmp_path / "in.json").write_text(json.dumps(entries | {"[red]\x1b[2J": "-"}))
    shown = at_terminal("import", tmp_path / "in.json", *cli.options)
    assert "importing" in shown
    assert "100%" in shown
    assert "imported  1,200" in "\n".join(without_style(shown))
    assert r"[red]\x1b[2J" in shown


def test_progress_goes_to_stderr_alone(cli: Cli) -> None:
    shown = at_terminal("report", "--json", *cli.options, stdout=subprocess.PIPE)
    assert "scanning" in shown
    assert json.loads(at_terminal.out)["live"] == 0  # type: ignore[attr-defined]


def test_remarks_for_a_person(cli: Cli) -> None:
    assert at_terminal("set", *cli.options, "k", "id-1") == "saved, expires in 24h\r\n"
    assert at_terminal("set", *cli.options, "--json", "k", "id-1").startswith("{")
    assert at_terminal("get", *cli.options, "k") == "id-1\r\n"


@contextmanager
def serving(*args: str | Path, **options: Any) -> Iterator[tuple[subprocess.Popen[bytes], redis.Redis]]:
    """`serve` in the foreground, its first line read; ended at the end if it still runs."""
    process = spawn("serve", *args, **options)
    try:
        assert process.stdout is not None
        place = process.stdout.readline().decode()
        assert place.endswith("\n"), process.communicate(timeout=DEADLINE_S)
        with redis.Redis.from_url(place.strip()) as client:
            yield process, client
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=DEADLINE_S)


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]]
)
def test_serve_stops_in_order_and_loses_nothing(tmp_path: Path, signals: list[signal.Signals]) -> None:
    directory = tmp_path / "data"
    with serving("--dir", directory, "--port", "0") as (process, client):
        place = f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0"
        assert finish(spawn("set", "--url", place, "k", "id-1"))[0] == exits.DONE
        server_id = client.info("server")["process_id"]
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        assert said == f"redis-sessions: data is kept in {directory}; stop with Ctrl-C or SIGTERM\n"
        for number in signals:
            process.send_signal(number)
        assert finish(process) == (exits.DONE, "", "")
        with pytest.raises(ProcessLookupError):
            os.kill(server_id, 0)
    with serving("--dir", directory, "--port", "0") as (_, client):
        assert client.config_get("append[of]*[yc]") == {"appendonly": "yes", "appendfsync": "always"}
        assert client.get("sessions:id:{k}") == b"id-1"
        assert 0 < DAY_MS - client.pttl("sessions:id:{k}") < 60_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="signals of another process, as Linux shows them")
def test_serve_keeps_ignoring_what_nohup_ignores(tmp_path: Path) -> None:
    words = ["nohup", *test_cli_support.PROGRAM, "serve", "--dir", str(tmp_path / "data"), "--port", "0"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"redis://127.0.0.1:")
        status = Path(f"/proc/{process.pid}/status").read_text()
        ignored = int(re.findall(r"^SigIgn:\s(\w+)$", status, re.MULTILINE)[0], 16)
        assert ignored >> (signal.SIGHUP - 1) & 1
        assert not ignored >> (signal.SIGTERM - 1) & 1
        process.terminate()
        assert finish(process)[0] == exits.DONE


def test_serve_on_a_socket_in_the_default_directory(tmp_path: Path) -> None:
    with serving("--socket", tmp_path / "s.sock", env={"XDG_DATA_HOME": str(tmp_path)}) as (_, client):
        assert client.ping()
        assert (tmp_path / "redis-sessions").stat().st_mode & 0o777 == 0o700
        code, _, err = finish(spawn("serve", "--port", "0", env={"XDG_DATA_HOME": str(tmp_path)}))
        assert (code, err.count("\n")) == (exits.USAGE, 1)
    home = {"XDG_DATA_HOME": "relative", "HOME": str(tmp_path)}
    with serving("--socket", tmp_path / "s.sock", env=home) as (_, client):
        assert (tmp_path / ".local/share/redis-sessions").is_dir()


def test_serve_with_users_leaves_the_doctor_nothing_to_say(tmp_path: Path) -> None:
    password = "s3cret-random-enough"
    code, lines, _ = finish(spawn("acl", env={"REDIS_SESSIONS_ADMIN_PASSWORD": password}))
    assert code == exits.DONE
    (tmp_path / "users.acl").write_text(
        re.sub("^(user admin .*)", r"\1 +config|get +acl|getuser", lines, flags=re.MULTILINE)
    )
    words = ("--dir", tmp_path / "data", "--port", "0", "--acl", tmp_path / "users.acl", "--appendfsync", "everysec")
    with serving(*words) as (_, client):
        with pytest.raises(redis.AuthenticationError):
            client.ping()
        port = client.connection_pool.connection_kwargs["port"]
        code, out, _ = finish(spawn("doctor", "--url", f"redis://admin:{password}@127.0.0.1:{port}/0"))
        assert (code, out.splitlines()[-1]) == (exits.DONE, "0 broken, 0 warnings, 0 unknown, 24 ok")
        assert re.search("ok +appendfsync +everysec", out)
    (tmp_path / "users.acl").write_text("user x nonsense\n")
    code, _, err = finish(spawn("serve", *words))
    assert code == exits.USAGE
    assert "ACL errors" in err


def test_serve_on_a_port_in_use(tmp_path: Path, url: str) -> None:
    port = url.split(":")[2].partition("/")[0]
    code, out, err = finish(spawn("serve", "--dir", tmp_path / "data", "--port", port))
    assert (code, out) == (exits.USAGE, "")
    assert err.startswith(f"redis-sessions: port {port} of 127.0.0.1 is in use")


def test_serve_reports_a_server_that_ends_unexpectedly(tmp_path: Path) -> None:
    with serving("--dir", tmp_path / "data", "--port", "0") as (process, client):
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
        code, out, err = finish(process)
    assert (code, out) == (exits.PARTLY, "")
    last = err.splitlines()[-1]
    assert "by itself, by signal 9" in last
    assert f"{tmp_path}/data/server.log ends: " in last
    assert "eady to accept connections" in last


@pytest.mark.parametrize(
    "args",
    [
        *(["serve", "--port", "0", "--dir", "{}"], ["serve", "--dir", "/nowhere", "--socket", "{}"], ["export", "{}"]),
        *(["import", "{}"], ["import", "/dev/null", "--rejects", "{}"], ["acl", "--generate", "{}"]),
        ["list", "--config", "{}"],
    ],
)
def test_in_a_working_directory_that_was_deleted_a_relative_path_is_named(tmp_path: Path, args: list[str]) -> None:
    words = [*test_cli_support.PROGRAM, *(arg.format("relative") for arg in args)]
    deleted = ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(tmp_path), *words]
    code, out, err = finish(subprocess.Popen(deleted, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    assert (code, out) == (exits.USAGE, "")
    assert re.fullmatch(r"redis-sessions: [^\n]*\brelative\b[^\n]*\(No such file or directory\)[^\n]*\n", err)


def test_a_directory_without_rights_is_not_lost_output(cli: Cli) -> None:
    with tempfile.TemporaryDirectory() as secret, as_nobody():
        for args in (["import", "/dev/null", "--rejects", "{}"], ["import", "{}", "--rejects", "/tmp/x"], ["export", "{}"]):
            path = f"{secret}/e.json"
            code, out, err = finish(spawn(*(arg.format(path) for arg in args), *cli.options))
            assert (code, out) == (exits.USAGE, "")
            assert f"{path} can't be " in err
            assert "(Permission denied)" in err


def test_serve_without_a_home_asks_for_a_directory() -> None:
    with as_nobody():
        code, out, err = finish(spawn("serve", "--port", "0"))
    assert (code, out) == (exits.USAGE, "")
    assert re.fullmatch(r"redis-sessions: --dir [^\n]*home[^\n]*\n", err)
