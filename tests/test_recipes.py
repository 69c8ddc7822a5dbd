"""Runs the recipes of the manual as they are written: with subprocess, Celery, RQ and FastAPI, and in a shell."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types

import pytest

from redis_sessions import AccessDenied, SessionStore
from redis_sessions.agents import get_agent
from redis_sessions.server import EmbeddedServer
from tests.manual import DEFAULT_URL, PAGES, SESSION_ID, Shell, blocks, play
from tests.test_agents import OBSERVATIONS, name

RECIPES = {block.info: block.text for block in blocks("recipes") if block.language == "python"}
SCRIPTS = [block.text for name in PAGES for block in blocks(name) if block.language == "sh"]


@pytest.fixture(scope="module")
def server():
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def recipe(server, request, monkeypatch):
    """Names defined by a recipe."""

    def run(name):
        code = RECIPES[name].replace(DEFAULT_URL, server.url.removesuffix("0"))
        # A module that can be imported, since RQ looks its functions up by name.
        module = types.ModuleType(f"recipe_{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        names = vars(module)
        exec(compile(code, f"recipes.md, {name}", "exec"), names)
        if "store" in names:
            request.addfinalizer(names["store"].close)
        return names

    return run


@pytest.fixture
def shell(tmp_path, server):
    return Shell(tmp_path, server.url)


def test_every_recipe_has_a_test():
    assert set(RECIPES) == {"subprocess", "celery", "rq", "fastapi"}


def test_subprocess(recipe, shell, monkeypatch):
    monkeypatch.setenv("PATH", shell.environment["PATH"])
    names = recipe("subprocess")
    assert [names["reply"]("subprocess:7", "hello") for _ in range(2)] == ["hello: done"] * 2
    assert names["store"].get("subprocess:7") == SESSION_ID
    assert names["store"].counters()["resumes_total"] == 1
    (shell.folder / "bin/codex").write_text(
        f"#!/bin/sh\necho 'Error: no rollout found for thread id {SESSION_ID}' >&2; exit 1\n"
    )
    with pytest.raises(names["subprocess"].CalledProcessError):
        names["reply"]("subprocess:7", "hello")
    assert names["store"].get("subprocess:7") is None


README = next(block.text for block in blocks("README") if block.language == "python").partition("\nstore =")[0]
# Code, the call that runs the agent, and what marks the output of the command that it runs: in it, and not in it.
PARSERS = {
    "claude": (README, lambda names: names["review"](None), '"result"', '"subtype":"init"'),
    "codex": (RECIPES["subprocess"], lambda names: names["ask"](None, "hello"), '"thread.started"', "\0"),
}


@pytest.mark.parametrize("agent", PARSERS)
def test_what_real_agents_printed_is_parsed(agent, monkeypatch):
    """Of all that ended with exit code 0: one that succeeded is a turn, and one that failed raises what the judge reads."""
    (code, call, mark, other), names, wrong, seen = PARSERS[agent], {}, [], 0
    exec(code, names)
    for each in OBSERVATIONS:
        if (each["agent"], each["exit_code"]) != (agent, 0) or mark not in each["stdout"] or other in each["stdout"]:
            continue
        done = subprocess.CompletedProcess(["agent"], 0, each["stdout"], each["stderr"])
        monkeypatch.setattr(subprocess, "run", lambda *_, done=done, **__: done)
        try:
            found = call(names).session_id
        except subprocess.CalledProcessError as error:
            found = get_agent(agent).judge(error).verdict
        except (LookupError, ValueError) as error:
            found = repr(error)
        seen += 1
        if found != (each["session_id"] if each["verdict"] == "ok" else each["verdict"]):
            wrong.append((name(each), found))
    assert wrong == []
    assert seen > 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_celery(recipe):
    pytest.importorskip("celery")
    names = recipe("celery")
    names["app"].conf.task_always_eager = True
    reply, store = names["reply"], names["store"]
    assert reply.delay("celery:7", "hello").get() == "hello: done"
    assert store.get("celery:7") == "5f2c9a"
    store.acquire("celery:8")
    with pytest.raises(pytest.importorskip("celery.exceptions").Retry):
        reply.apply(args=["celery:8", "hello"], throw=True, retries=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rq(recipe, server):
    rq = pytest.importorskip("rq")
    import redis

    names = recipe("rq")
    with redis.Redis.from_url(server.url) as connection:
        queue = rq.Queue(connection=connection, is_async=False)
        job = queue.enqueue(names["reply"], "rq:7", "hello")
        assert job.return_value() == "hello: done"
    assert names["store"].get("rq:7") == "5f2c9a"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fastapi(recipe, server):
    pytest.importorskip("httpx")
    testclient = pytest.importorskip("fastapi.testclient")
    application = recipe("fastapi")["app"]
    with testclient.TestClient(application) as client, SessionStore.from_url(server.url) as store:
        first, second = (client.post("/chat/7", params={"prompt": "hello"}) for _ in range(2))
        assert first.json() == {"answer": "hello: done", "remembers": False}
        assert second.json() == {"answer": "hello: done", "remembers": True}
        store.acquire("chat:8")
        held = client.post("/chat/8", params={"prompt": "hello"})
        assert (held.status_code, held.headers["Retry-After"]) == (409, "1")


RUNS = [script for script in SCRIPTS if "redis-sessions run" in script]


@pytest.mark.parametrize("script", RUNS)
def test_running_an_agent(shell, script):
    shell.paste(script)
    key = re.search(r"(?:KEY=|run )([a-z]\S+)", script)[1]
    saved = "b-1" if "./bot" in script else SESSION_ID
    assert shell.run("redis-sessions", "get", key) == (0, f"{saved}\n")


def test_an_agent_of_your_own_is_resumed(shell):
    [script] = [script for script in RUNS if "./bot" in script]
    asked = [json.loads(line)["asked"] for line in shell.paste(script.replace("bot:8", "bot:9")).splitlines()]
    assert asked == ["ask", "--session=b-1 ask"]


def test_every_script_that_runs_an_agent_is_known():
    assert len(RUNS) == 6


def test_the_users_of_a_server(shell):
    [script] = [script for script in SCRIPTS if "redis-sessions acl" in script]
    assert len(shell.paste(script).splitlines()) == 5
    passwords = shell.folder / "passwords"
    with EmbeddedServer(extra={"aclfile": str(passwords / "users.acl")}) as guarded:
        with SessionStore.from_url(guarded.url) as store, pytest.raises(AccessDenied):
            store.get("k")
        password = (passwords / "worker.password").read_text().strip()
        with SessionStore.from_url(guarded.url.replace("//", "//worker@"), password=password) as store:
            assert store.get("k") is None


def test_moving_from_sessions_json_and_back(tmp_path):
    play("moving", tmp_path)
    assert list(json.loads((tmp_path / "rejects.json").read_text())) == ["chat:9"]
    assert json.loads((tmp_path / "sessions.json.new").read_text())["chat:8"]["id"] == "0190c3e2"
