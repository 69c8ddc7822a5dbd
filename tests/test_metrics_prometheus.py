"""Checks by Prometheus: its lint, its rule tests, and a Prometheus server that scrapes an exporter."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import redis_sessions
from redis_sessions import SessionStore, StoreSettings, Turn
from tests import test_cli_support
from tests.servers import wait_until
from tests.test_cli_metrics import DEADLINE_S, exporting
from tests.test_cli_support import Cli, run

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables

UUID = "5f2c9a7e-1d3b-4c58-8f60-2b7a9c4e6d15"
RULES = Path(redis_sessions.__file__).parent / "metrics/alerts.yml"
RULE_TESTS = Path(__file__).parent / "alerts_test.yml"


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on the PATH")
    return found


def promtool(*args: str | Path, text: str = "") -> None:
    done = subprocess.run(
        [program("promtool"), *args], input=text, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Lint warnings don't change its exit code.
    assert "SUCCESS" in done.stdout if args[1] == "rules" else done.stdout + done.stderr == ""


def test_lint_of_the_metrics(cli: Cli) -> None:
    cli.plant("a")
    promtool("check", "metrics", text=cli("metrics").stdout)


def test_lint_of_the_rules() -> None:
    promtool("check", "rules", RULES)


def test_the_rules() -> None:
    promtool("test", "rules", RULE_TESTS)


def test_every_rule_is_tested_and_every_metric_in_one_exists(cli: Cli) -> None:
    rules, tests = RULES.read_text(), RULE_TESTS.read_text()
    names = re.findall(r"^ +- (?:alert|record): (\S+)$", rules, re.MULTILINE)
    assert len(names) == 10
    for name in names:
        assert len(re.findall(rf"{name}\b", tests)) >= 2, name
    exported = set(re.findall("^# TYPE (.*) ", cli("metrics").stdout, re.MULTILINE))
    asked = set(re.findall(r"\b(?:redis_sessions|claude_session)_\w+", rules))
    assert asked
    assert asked <= exported
    assert "sum" not in re.findall(r"\w+(?= (?:without|by) \()", rules)


def test_prometheus_scrapes_it(cli: Cli, tmp_path: Path) -> None:
    cli.plant("a")
    cli("failures", "--increment")
    with SessionStore.from_url(cli.url, StoreSettings(namespace=cli.namespace)) as store:
        for _ in range(2):
            store.resume("chat:7", lambda _: Turn(UUID, None, context_tokens=42_000), agent="claude")
    with exporting(*cli.options, "--scan-max-age", "0s") as exporter:
        target = exporter.place.split("/")[2]
        (tmp_path / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "400ms", "scrape_timeout": "400ms", "evaluation_interval": "400ms"},
                    "rule_files": [str(RULES)],
                    "scrape_configs": [{"job_name": "sessions", "static_configs": [{"targets": [target]}]}],
                }
            )
        )
        options = (f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data")
        log = tmp_path / "log"
        with log.open("w") as said:
            process = subprocess.Popen([program("prometheus"), *options, "--web.listen-address=127.0.0.1:0"], stderr=said)
        try:
            wait_until(
                lambda: all(words in log.read_text() for words in ("ready to receive web requests", "Listening on")),
                "Prometheus is ready",
                DEADLINE_S,
            )
            place = re.findall(r"127\.0\.0\.1:[1-9]\d+", log.read_text().partition("Listening on")[2])[0]

            def ask(path: str, **parameters: str) -> Any:
                query = urllib.parse.urlencode(parameters)
                with urllib.request.urlopen(f"http://{place}/api/v1/{path}?{query}", timeout=DEADLINE_S) as answer:
                    return json.load(answer)["data"]

            def value(query: str) -> str | None:
                found = ask("query", query=query)["result"]
                return found[0]["value"][1] if found else None

            mine = f'{{namespace="{cli.namespace}", job="sessions"}}'
            wait_until(lambda: value(f"claude_session_resume_failures_total{mine}") == "1", "scraped", DEADLINE_S)
            wait_until(
                lambda: (
                    value("up") == value(f"redis_sessions_up{mine}") == "1"
                    and value(f"histogram_quantile(1, redis_sessions_idle_seconds_bucket{mine}) <= 60") is not None
                ),
                "all of a scrape is there",
                DEADLINE_S,
            )
            cli("failures", "--increment")
            cli.plant("b", px=None)
            wait_until(lambda: value(f"claude_session_resume_failures_total{mine}") == "2", "scraped again", DEADLINE_S)
            wait_until(
                lambda: value(f"ALERTS{{alertname='RedisSessionsWithoutTTL', {mine[1:]}") == "1", "pending", DEADLINE_S
            )
            dashboard = json.loads(run("metrics", "--dashboard").stdout)
            variables = {"job": "sessions", "namespace": cli.namespace, "__rate_interval": "1m", "__range": "1m"}
            panels = [(panel["title"], each["expr"]) for panel in dashboard["panels"] for each in panel["targets"]]
            assert len(panels) > 20
            for title, expression in panels:
                query = re.sub(r"\$(\w+)", lambda match: variables[match[1]], expression)
                # Some need a second scrape after what they count.
                wait_until(lambda query=query: value(query) not in (None, "NaN"), f"{title}: {query} is known", DEADLINE_S)
            for variable in dashboard["templating"]["list"][1:]:
                query, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
                found = ask(f"label/{label}/values", **{"match[]": query.replace("$job", "sessions")})
                assert found == [variables[variable["name"]]]
            [group] = ask("rules")["groups"]
            assert [(rule["name"], rule.get("lastError")) for rule in group["rules"] if rule["health"] != "ok"] == []
            types = ask("metadata")
            # In OpenMetrics, which it asks for, the suffix is the sample's and not the counter's.
            kinds = {"claude_session_resume_failures": "counter", "redis_sessions_live_sessions": "gauge"}
            kinds |= {"redis_sessions_idle_seconds": "gaugehistogram"}
            assert {name: types[name][0]["type"] for name in kinds} == kinds
        finally:
            process.terminate()
            process.wait(timeout=DEADLINE_S)
