"""compose.yaml and its overlays are consistent and safe, and the workers behave as containers must."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from redis_sessions import SessionStore, StoreSettings
from redis_sessions.cli import acl, serve
from redis_sessions.demo import agent as stand_in
from redis_sessions.demo import worker as demo_worker
from redis_sessions.demo.plan import conversations
from redis_sessions.operations.acl import USERS
from redis_sessions.operations.conversation import Lease
from redis_sessions.server import DEFAULTS, EmbeddedServer
from tests.test_demo import DEADLINE_S, WORKER, environment, processes_of

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
OVERLAYS = ROOT / "redis_sessions/docs/compose"
BASE, USERS_FILE, CLUSTER = ROOT / "compose.yaml", OVERLAYS / "users.yaml", OVERLAYS / "cluster.yaml"
# What is used together.
PROJECTS = {"alone": [BASE], "users": [BASE, USERS_FILE], "cluster": [BASE, CLUSTER]}


class ComposeLoader(yaml.SafeLoader):
    """Also knows the tag by which an overlay takes something away."""


ComposeLoader.add_constructor("!reset", lambda *_: None)
FILES = {path: yaml.load(path.read_text(), ComposeLoader) for path in (BASE, USERS_FILE, CLUSTER)}


def settings(path: Path, name: str) -> dict[str, str]:
    """What a service gives its Redis on the command line."""
    program, *words = shlex.split(FILES[path]["services"][name]["command"])
    assert program == "redis-server"
    return dict(zip(words[::2], words[1::2], strict=True))


def resolved(project: str) -> dict:
    """What Docker Compose makes of the files, every profile included."""
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("docker has no compose plugin")
    files = [word for path in PROJECTS[project] for word in ("-f", str(path))]
    program = ["docker", "compose", "--project-directory", str(ROOT), *files, "--profile", "*", "config", "--format", "json"]
    return json.loads(subprocess.run(program, stdout=subprocess.PIPE, timeout=DEADLINE_S, check=True).stdout)


def test_it_is_short():
    assert BASE.read_text().count("\n") <= 90


@pytest.mark.parametrize("project", PROJECTS)
def test_every_name_is_defined(project):
    files = [FILES[path] for path in PROJECTS[project]]
    services = {name for file in files for name in file["services"]}
    volumes = {name for file in files for name in file["volumes"]}
    for file in files:
        for name, service in file["services"].items():
            assert {"image", "build"} & set().union(*(each["services"].get(name, {}) for each in files))
            assert set(service.get("depends_on", ())) <= services
            sources = [
                each["source"] if isinstance(each, dict) else each.split(":")[0] for each in service.get("volumes", ())
            ]
            assert {source for source in sources if not source.startswith("./")} <= volumes
            assert all((ROOT / source).exists() for source in sources if source.startswith("./"))


def test_workers_accept_their_arguments():
    worker = FILES[BASE]["services"]["worker"]
    python, *arguments = worker["command"].split()
    assert [python, *arguments[:2]] == ["python", "-m", "redis_sessions.demo.worker"]
    options = demo_worker.parser().parse_args(arguments[2:])
    # The store must not keep an ID for longer than the agent keeps its session.
    assert options.max_age_ms <= options.agent_keeps_ms
    assert worker["volumes"] == [f"agent-sessions:{options.agent_dir}"]
    assert f"find {options.heartbeat} -newermt" in worker["healthcheck"]["test"][1]
    assert worker["environment"]["REDIS_SESSIONS_MAX_AGE"] == f"{options.max_age_ms // 60_000}m"


@pytest.mark.parametrize(
    ("path", "name"), [(BASE, "redis"), (USERS_FILE, "redis"), (CLUSTER, "redis"), (CLUSTER, "redis-2")]
)
def test_redis_has_the_settings_of_the_embedded_server_and_keeps_its_data(path, name):
    given = settings(path, name)
    defaults = [*DEFAULTS.split(), "--appendonly", "yes", "--save", ""]
    # No acknowledged save is lost, at a price that one machine can pay.
    changed = {"--protected-mode": "no", "--appendfsync": "always"}
    for setting, value in zip(defaults[::2], defaults[1::2], strict=True):
        assert given[setting] == changed.get(setting, value)
    extra = {
        name.removeprefix("--"): value for name, value in given.items() if name not in ("--aclfile", "--cluster-enabled")
    }
    with EmbeddedServer(extra=extra) as server, SessionStore.from_url(server.url) as store:
        store.set("a", "b")
        assert store.get("a") == "b"


def test_each_service_has_the_password_of_its_user_alone():
    services = FILES[USERS_FILE]["services"]
    generated = {f"acl/{user}.password" for user in (*USERS, "operator")}
    assert "redis-sessions acl --generate /passwords/acl" in services["passwords"]["command"]
    mounted = {}
    for name, service in services.items():
        for volume in service["volumes"]:
            if isinstance(volume, dict):
                assert volume["read_only"]
                mounted[name] = volume["volume"]["subpath"]
                assert volume["target"] in (service.get("environment") or settings(USERS_FILE, name)).values()
    assert mounted.pop("redis") == "acl/users.acl"
    users = {name: "report" if name == "metrics" else name for name in mounted}
    assert mounted == {name: f"acl/{user}.password" for name, user in users.items()}
    assert set(mounted.values()) == generated
    for name, user in users.items():
        assert services[name]["environment"]["REDIS_SESSIONS_URL"] == f"redis://{user}@redis:6379/0"


@pytest.mark.parametrize("name", ["admin", "operator"])
def test_a_user_who_exports_has_room_to_sort(name):
    service = FILES[USERS_FILE]["services"][name]
    assert service["read_only"]
    assert service["tmpfs"] == FILES[BASE]["services"]["worker"]["tmpfs"]


SHOWN = re.findall(
    r"docker compose ([^`\n]+?)(?:`|  +#|\n)",
    "\n".join(path.read_text() for path in (ROOT / "redis_sessions/docs/servers.md", *FILES)),
)


@pytest.mark.parametrize("line", SHOWN)
def test_documented_commands_name_existing_files_services_and_profiles(line):
    files = [ROOT / file for file in re.findall(r"-f (\S+\.yaml)", line)] or [BASE]
    known = {name: service for file in files for name, service in FILES[file]["services"].items()}
    services = re.findall(r"--scale (\S+)=|(?:run .*--rm|logs -f|restart) ([a-z-]+)", line)
    assert {name for pair in services for name in pair if name} <= set(known)
    profiles = set(re.findall(r"--profile '?([^\s']+)", line)) - {"*"}
    assert profiles <= {profile for service in known.values() for profile in service.get("profiles", ())}
    assert {"up", "down", "logs", "run"} & set(line.split())


def test_commands_are_documented():
    assert len(SHOWN) > 8


def test_ports_are_local_and_images_are_pinned():
    services = [service for file in FILES.values() for service in file["services"].values()]
    published = {port for service in services for port in service.get("ports") or ()}
    assert {re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z]+_PORT:-(\d+)\}:\1", port)[1] for port in published} == {
        *("6379", "9464", "9090", "3000")
    }
    assert {service["image"] for service in services if "image" in service} == {
        *("redis:8.2.3-alpine", "prom/prometheus:v3.5.0", "grafana/grafana:12.2.0", "redis-sessions-worker")
    }
    stages = dict(re.findall(r"^FROM (\S+) AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert stages == {"python:3.13-slim": "worker", "worker": "test"}
    assert {service["build"]["target"] for service in services if "build" in service} == set(stages.values())


def test_no_secret_is_in_the_environment():
    variables = [
        variable for file in FILES.values() for each in file["services"].values() for variable in each.get("environment", ())
    ]
    assert set(variables) == {"REDIS_SESSIONS_URL", "REDIS_SESSIONS_MAX_AGE", "REDIS_SESSIONS_PASSWORD_FILE"}
    assert not re.search("PASSWORD|SECRET", (OVERLAYS / "grafana/grafana.env").read_text())


def test_prometheus_and_grafana_find_each_other_and_what_they_read():
    services = FILES[BASE]["services"]
    mounted = dict(
        volume.removesuffix(":ro").split(":") for name in ("prometheus", "grafana") for volume in services[name]["volumes"]
    )
    scraped = yaml.safe_load((OVERLAYS / "prometheus.yml").read_text())
    assert scraped["rule_files"] == [mounted["./redis_sessions/metrics/alerts.yml"]]
    assert scraped["scrape_configs"][0]["static_configs"] == [{"targets": ["metrics:9464"]}]
    assert "--listen 0.0.0.0:9464 " in services["metrics"]["command"]
    [source] = yaml.safe_load((OVERLAYS / "grafana/datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    [provider] = yaml.safe_load((OVERLAYS / "grafana/dashboards/redis_sessions.yml").read_text())["providers"]
    dashboard = mounted["./redis_sessions/metrics/dashboard.json"]
    assert dashboard.startswith(f"{provider['options']['path']}/")
    assert f"HOME_DASHBOARD_PATH={dashboard}\n" in (OVERLAYS / "grafana/grafana.env").read_text()


def test_the_image_has_what_the_tests_need_and_no_passwords_data_or_history():
    first, *others = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    assert first == "*"
    needed = {line.removeprefix("!") for line in others if line.startswith("!")}
    assert needed == {
        *("redis_sessions", "tests", "pyproject.toml", "README.md", "LICENSE"),
        *("compose.yaml", "Dockerfile", ".dockerignore", ".gitignore", ".ci"),
    }
    assert all((ROOT / name).exists() for name in needed)
    # Of these, only caches are left out.
    assert {line for line in others if not line.startswith("!")} == {
        *("**/__pycache__", "**/.*_cache", "**/.hypothesis", "**/.coverage*"),
    }


def test_what_the_manual_makes_in_a_checkout_is_not_committed():
    made = [*re.findall(r"acl --generate (\w+)", (OVERLAYS.parent / "servers.md").read_text())]
    made += re.findall(r"--(?:dir|generate) (?:\./)?(\w+)", f"{serve.serve.__doc__} {acl.acl.__doc__}")
    assert set(made) == {"passwords", "data"}
    assert {f"/{name}/" for name in made} <= set((ROOT / ".gitignore").read_text().splitlines())


ONE_SHOT = {"passwords", "admin", "operator", "cluster", "test"}


@pytest.mark.parametrize("project", PROJECTS)
def test_no_service_has_more_rights_than_it_needs(project):
    config = resolved(project)
    for name, service in config["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name
        assert name == "test" or service["read_only"], name
        assert name in ONE_SHOT or service["healthcheck"]["test"][0].startswith("CMD"), name
        assert name in ONE_SHOT or service["restart"] == "unless-stopped", name
    mounted = {volume["source"] for each in config["services"].values() for volume in each.get("volumes", [])}
    # A cluster keeps nothing in the volume of the one server.
    assert mounted - {source for source in mounted if source.startswith("/")} == set(config["volumes"])
    assert ("redis-data" in mounted) == (project != "cluster")
    worker = config["services"]["worker"]
    assert worker["deploy"]["replicas"] == 3
    last = {"alone": "redis", "users": "redis", "cluster": "cluster"}[project]
    awaited = "service_completed_successfully" if project == "cluster" else "service_healthy"
    assert worker["depends_on"][last]["condition"] == awaited


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
    options = ["--agent-works-ms=600000", "--conversations=1", "--namespace=n"]
    with EmbeddedServer() as server, endless_worker(tmp_path, server.url, *options) as worker:
        locks = tmp_path / "agent" / "locks"
        give_up_at_s = time.monotonic() + DEADLINE_S
        while not (locks.exists() and list(locks.iterdir())):
            assert time.monotonic() < give_up_at_s
            time.sleep(0.02)
        assert agents(tmp_path)
        worker.terminate()
        assert worker.wait(60) == 0  # the agent would work for ten minutes
        assert not agents(tmp_path)
        with SessionStore.from_url(server.url, StoreSettings(namespace="n")) as store:
            assert isinstance(store.acquire(*conversations(1)), Lease)


def test_a_worker_ends_when_nobody_reads_its_output(tmp_path):
    with EmbeddedServer() as server, endless_worker(tmp_path, server.url) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        worker.stdout.close()
        assert worker.wait(10) == 0
