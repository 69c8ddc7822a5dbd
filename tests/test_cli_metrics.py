"""`metrics`: printed once, served to Prometheus, and its alert rules."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

import redis_sessions
from redis_sessions import InvalidSettings, SessionStore
from redis_sessions.cli import exit_codes as exits
from redis_sessions.metrics import Collector
from redis_sessions.metrics import exporter as http
from redis_sessions.metrics.exporter import CONNECTIONS
from redis_sessions.server import EmbeddedServer
from tests import test_cli_support
from tests.servers import wait_until
from tests.test_cli_support import Cli, run, spawn

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables
hasty = test_cli_support.hasty

DEADLINE_S = 30.0
AWAY = "unix:///nowhere/sock"


class Exporter:
    """A process of `metrics --listen` that has printed where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], place: str, said: list[str]) -> None:
        self.process, self.place, self.said = process, place, said

    def get(self, path: str = "/metrics", **headers: str) -> str:
        request = urllib.request.Request(self.place.replace("/metrics", path), headers=headers)
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return answer.read().decode()

    def connect(self) -> socket.socket:
        host, port = self.place.split("/")[2].split(":")
        return socket.create_connection((host, int(port)), DEADLINE_S)

    def ask(self, text: bytes) -> bytes:
        """Its answer to these bytes, until it closes the connection."""
        with self.connect() as connection:
            connection.sendall(text)
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    def up(self) -> str:
        [value] = re.findall(r"^redis_sessions_up\{.*\} (\S+)$", self.get(), re.MULTILINE)
        return value

    def end(self, *signals: signal.Signals) -> tuple[int, str, str]:
        for number in signals:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out.decode(), err.decode()


@contextmanager
def exporting(*args: str | Path, listen: str = "0") -> Iterator[Exporter]:
    process = spawn("metrics", "--listen", listen, *args)
    said: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line.decode())
            if found := re.search(r"metrics are at (http://\S+/metrics); stop with", said[-1]):
                yield Exporter(process, found[1], said)
                break
        else:
            pytest.fail(f"it did not listen: {said}")
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=DEADLINE_S)


def test_printed_once(cli: Cli) -> None:
    cli.plant("a")
    cli("failures", "--increment")
    shown = cli("metrics").stdout
    assert f'claude_session_resume_failures_total{{namespace="{cli.namespace}"}} 1.0\n' in shown
    assert f'redis_sessions_live_sessions{{namespace="{cli.namespace}"}} 1.0\n' in shown
    samples = [json.loads(line) for line in cli("metrics", "--json").stdout.splitlines()]
    assert all(abs(sample.pop("at_ms") - time.time() * 1000) < 60_000 for sample in samples)
    assert not [sample for sample in samples if isinstance(sample["value"], bool)]
    assert {"name": "redis_sessions_up", "labels": {"namespace": cli.namespace}, "value": 1} in samples


@pytest.mark.usefixtures("hasty")
def test_printed_once_while_redis_is_away() -> None:
    result: Any = test_cli_support.CliRunner().invoke(test_cli_support.app, ["metrics", "--url", AWAY])
    assert result.exit_code == exits.UNREACHABLE
    assert [line for line in result.stdout.splitlines() if line[0] != "#"] == ['redis_sessions_up{namespace="sessions"} 0.0']
    assert re.fullmatch(r"redis-sessions: [^\n]+ can't be reached [^\n]+\n", result.stderr)


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_printed_once_it_is_interrupted_while_it_scans(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    long_ms = 600_000
    patient = test_cli_support.program_with(deadline_ms=long_ms, socket_timeout_ms=long_ms)
    monkeypatch.setattr(test_cli_support, "PROGRAM", patient)
    with EmbeddedServer() as server, redis.Redis.from_url(server.url) as raw:
        raw.execute_command("CLIENT", "PAUSE", long_ms, "WRITE")  # scripts, too, by which it scans
        process = spawn("metrics", "--url", server.url, *(f"--namespace={name}" for name in names))
        try:
            wait_until(lambda: raw.info("clients")["blocked_clients"] == 1, "the first scan is sent")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize(("option", "file"), [("--rules", "alerts.yml"), ("--dashboard", "dashboard.json")])
def test_printed_files(option: str, file: str) -> None:
    path = Path(redis_sessions.__file__).parent / "metrics" / file
    assert run("metrics", option, "--url", AWAY).stdout == path.read_text()


@pytest.mark.parametrize(
    "args",
    [
        *(
            ["--listen", place]
            for place in ("", ":9464", "x:", "65536", "127.0.0.1:99999", "127.0.0.1", "::1:80", "1:2:3", "a b:1", "a..b:1")
        ),
        *(
            ["--listen", place]
            for place in ("redis://:s3cret@h:1", "no-such-host.invalid:0", "192.0.2.1:0", f"{'a' * 64}:0")
        ),
        *(
            ["--listen", "0", "--json"],
            ["--listen", "0", "--rules"],
            ["--rules", "--json"],
            ["--rules", "--dashboard"],
            ["--listen", "0", "--scan-max-age", "60"],
            ["--listen", "0", "--scan-max-age", ""],
            *(
                [*only, *output]
                for only in (["--scan-max-age=60s"], ["--scan-max-age=soon"], ["--show-keys"], ["--show-keys-to-others"])
                for output in ([], ["--json"], ["--rules"], ["--dashboard"])
            ),
        ),
    ],
)
def test_bad_input(args: list[str]) -> None:
    assert "s3cret" not in run("metrics", "--url", AWAY, *args, code=exits.USAGE).stderr


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = run("metrics", "--listen", f"127.0.0.1:{port}", "--url", AWAY, code=exits.USAGE).stderr
    assert f"port {port} of 127.0.0.1" in said


def test_served(cli: Cli) -> None:
    cli.plant("a")
    with exporting(*cli.options, "--scan-max-age", "0s") as exporter:
        assert exporter.place.startswith("http://127.0.0.1:")
        live = f'redis_sessions_live_sessions{{namespace="{cli.namespace}"}}'
        # A scan may take longer than a scrape waits for it.
        wait_until(lambda: f"{live} 1.0" in exporter.get(), "one is seen")
        cli.plant("b")
        wait_until(lambda: f"{live} 2.0" in exporter.get(), "both are seen")
        assert exporter.get(Accept="application/openmetrics-text; version=1.0.0").endswith("# EOF\n")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            exporter.get("/other")
        # A client that sends nothing, and one that disconnects, do not block others.
        with exporter.connect(), exporter.connect() as hasty:
            hasty.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            hasty.close()
            assert exporter.up() == "1.0"
        assert exporter.end(signal.SIGTERM) == (exits.DONE, "", "")
    assert len(exporter.said) == 1


def test_other_requests() -> None:
    with exporting("--url", AWAY) as exporter:
        for text, status in (
            (b"HEAD /metrics HTTP/1.0\r\n\r\n", b"200"),
            (b"HEAD / HTTP/1.0\r\n\r\n", b"200"),
            (b"HEAD /favicon.ico HTTP/1.0\r\n\r\n", b"404"),
            (b"GET /metrics/ HTTP/1.0\r\n\r\n", b"404"),
            (b"POST /metrics HTTP/1.0\r\nContent-Length: 0\r\n\r\n", b"501"),
            (b"GET http://[::1/metrics HTTP/1.0\r\n\r\n", b"400"),
        ):
            head, _, body = exporter.ask(text).partition(b"\r\n\r\n")
            assert head.split()[1] == status, text
            assert not (text.startswith(b"HEAD") and body)
        # None of that is logged, and Redis was not asked.
        assert exporter.end(signal.SIGTERM) == (exits.DONE, "", "")


@pytest.mark.usefixtures("hasty")
def test_silent_clients_do_not_block_others() -> None:
    with exporting("--url", AWAY) as exporter, ExitStack() as stack:
        silent = [stack.enter_context(exporter.connect()) for _ in range(CONNECTIONS + 3)]
        assert exporter.up() == "0.0"
        # The oldest were closed, one of them for the scrape.
        assert [connection.recv(1) for connection in silent[:4]] == [b""] * 4
        for connection in silent[4:]:
            connection.sendall(b"GET /metrics?name[]=redis_sessions_up HTTP/1.0\r\n\r\n")
        assert all(connection.recv(15) == b"HTTP/1.0 200 OK" for connection in silent[4:])
        code, out, err = exporter.end(signal.SIGTERM)
    assert (code, out, err.count("\n")) == (exits.DONE, "", 1)


def test_a_host_name_with_an_unusable_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where IPv6 is off, but localhost is still ::1."""
    usable = socket.getaddrinfo("127.0.0.1", 0, type=socket.SOCK_STREAM)
    useless = socket.getaddrinfo("192.0.2.1", 0, type=socket.SOCK_STREAM)
    with SessionStore.from_url(AWAY) as store:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: useless + usable)
        with http.Exporter("localhost", 0, Collector(store)) as server:
            assert server.place.startswith("127.0.0.1:")
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: useless)
        with pytest.raises(InvalidSettings, match="port 0 of localhost"):
            http.Exporter("localhost", 0, Collector(store))


def test_served_to_other_machines() -> None:
    with exporting("--url", AWAY, listen="0.0.0.0:0") as exporter:
        assert len(exporter.said) == 2
        assert "no password" in exporter.said[0]
        assert exporter.end(signal.SIGINT) == (exits.DONE, "", "")


@pytest.mark.usefixtures("hasty")
def test_served_over_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on loopback")
    with exporting("--url", AWAY, listen="[::1]:0") as exporter:
        assert exporter.place.startswith("http://[::1]:")
        assert (exporter.up(), len(exporter.said)) == ("0.0", 1)
        code, out, err = exporter.end(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    assert (code, out, err.count("\n")) == (exits.DONE, "", 1)


@pytest.mark.usefixtures("hasty")
def test_it_keeps_running_while_redis_restarts(tmp_path: Path) -> None:
    with EmbeddedServer(directory=tmp_path / "data") as server:
        assert run("failures", "--increment", "--url", server.url).stdout == "1\n"
        server.kill()
        with exporting("--url", server.url) as exporter:
            for _ in range(2):
                assert exporter.up() == "0.0"
                server.start()
                wait_until(lambda: exporter.up() == "1.0", "it reads the counters again")
                assert 'claude_session_resume_failures_total{namespace="sessions"} 1.0' in exporter.get()
                server.kill()
            assert exporter.up() == "0.0"
            code, out, err = exporter.end(signal.SIGTERM)
    assert (code, out) == (exits.DONE, "")
    # Away, back, away, back, away: one line each, however often it was scraped.
    lines = [line for line in err.splitlines() if "counters" in line]
    told = ["again" if "can be read again" in line else "away" for line in lines]
    assert told == ["away", "again", "away", "again", "away"]
    # A scan that was running as the server died is said, too.
    assert all("key scan" in line or "list of leases" in line for line in err.splitlines() if line not in lines)
