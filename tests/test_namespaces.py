"""Several namespaces in one exporter, by the command line and by users that may read all of them."""

from __future__ import annotations

import json
import re
import signal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from redis_sessions.cli import exit_codes as exits
from redis_sessions.operations.acl import acl_lines
from tests import test_cli_support
from tests.servers import wait_until
from tests.test_cli_metrics import AWAY, exporting
from tests.test_cli_support import Cli, run

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables
hasty = test_cli_support.hasty

UP = "redis_sessions_up"
LIVE = "redis_sessions_live_sessions"


@pytest.fixture
def names(cli: Cli) -> list[str]:
    """Three namespaces, with 0, 1 and 2 sessions."""
    names = [f"{cli.namespace}.{number}" for number in range(3)]
    for number, name in enumerate(names):
        for session in range(number):
            cli.raw.set(f"{name}:id:{{{session}}}", "ID-1", px=60_000)
    return names


def given(names: list[str]) -> list[str]:
    return [word for name in names for word in ("--namespace", name)]


def by_namespace(text: str, name: str) -> dict[str, float]:
    """A sample's values by namespace, from a text that must describe each family once."""
    heads = re.findall(r"^# (?:HELP|TYPE) \S+", text, re.MULTILINE)
    assert len(heads) == len(set(heads))
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == name]
    return {sample.labels["namespace"]: sample.value for sample in samples}


def test_printed_once(cli: Cli, names: list[str]) -> None:
    shown = run("metrics", "--url", cli.url, *given([*names, names[0]])).stdout
    assert by_namespace(shown, LIVE) == {name: number for number, name in enumerate(names)}
    assert by_namespace(shown, UP) == dict.fromkeys(names, 1)
    rows = [json.loads(line) for line in run("metrics", "--json", "--url", cli.url, *given(names)).stdout.splitlines()]
    assert [row["value"] for row in rows if row["name"] == LIVE] == [0, 1, 2]


def test_served(cli: Cli, names: list[str]) -> None:
    with exporting("--url", cli.url, "--scan-max-age", "0s", *given(names)) as exporter:
        # A scan may take longer than a scrape waits for it.
        expected = {name: number for number, name in enumerate(names)}
        wait_until(lambda: by_namespace(exporter.get(), LIVE) == expected, "all are scanned")
        assert by_namespace(exporter.get(), UP) == dict.fromkeys(names, 1)
        assert exporter.end(signal.SIGTERM) == (exits.DONE, "", "")


@pytest.mark.usefixtures("hasty")
def test_an_outage_is_reported_once() -> None:
    result = test_cli_support.CliRunner().invoke(test_cli_support.app, ["metrics", "--url", AWAY, *given(["a", "b"])])
    assert result.exit_code == exits.UNREACHABLE
    assert by_namespace(result.stdout, UP) == {"a": 0, "b": 0}
    assert result.stderr.count("\n") == 1


def test_an_invalid_namespace_exports_nothing() -> None:
    assert "namespace" in run("metrics", "--url", AWAY, *given(["a", "b c"]), code=exits.USAGE).stderr


def test_a_corrupt_counter_is_reported(cli: Cli, names: list[str]) -> None:
    cli.raw.set(f"{names[1]}:counter:resumes_total", "many")
    result = test_cli_support.CliRunner().invoke(test_cli_support.app, ["metrics", "--url", cli.url, *given(names)])
    assert result.exit_code == exits.PARTLY
    assert by_namespace(result.stdout, UP) == dict.fromkeys(names, 1)
    assert by_namespace(result.stdout, "redis_sessions_resumes_total") == {names[0]: 0, names[2]: 0}
    assert f"a counter of namespace {names[1]} is not an integer" in result.stderr


def test_users_of_several(cli: Cli, names: list[str]) -> None:
    lines = acl_lines(names[:2])
    assert run("acl", *given(names[:2])).stdout.splitlines() == lines
    [rules] = [line.split()[2:] for line in lines if line.startswith("user report ")]
    user = f"report.{cli.namespace}"
    cli.raw.execute_command("ACL", "SETUSER", user, *rules, "on", ">p")
    try:
        place = ["--url", cli.url.replace("//", f"//{user}:p@")]
        assert by_namespace(run("metrics", *place, *given(names[:2])).stdout, LIVE) == {names[0]: 0, names[1]: 1}
        result = test_cli_support.CliRunner().invoke(test_cli_support.app, ["metrics", *place, *given(names)])
        assert by_namespace(result.stdout, UP) == {names[0]: 1, names[1]: 1, names[2]: 0}
        assert result.exit_code == exits.UNREACHABLE
    finally:
        cli.raw.execute_command("ACL", "DELUSER", user)
