"""`doctor` and `retime`: find faults, and shorten TTLs after the max age was lowered."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli import tables
from redis_sessions.cli.options import (
    MAX_AGE_VARIABLE,
    Options,
    Yes,
    confirmed,
    names_of_runtimes,
    on_a_store,
    register_users_runtimes,
    value,
)
from redis_sessions.errors import InvalidSettings
from redis_sessions.operations.text import count, exact_duration

if TYPE_CHECKING:
    from redis_sessions.doctor.findings import Diagnosis

_STYLES: Final = {"ok": "green", "unknown": "cyan", "warning": "yellow", "broken": "bold red"}

Agent = Annotated[
    str | None,
    value(
        "--agent",
        "NAME",
        "The agent whose sessions these are, to check the max age: claude, gemini, agentcore, …",
        autocompletion=names_of_runtimes,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; show how many would change.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 unless every check is ok.")]


@on_a_store
def doctor(at: Options, *, agent: Agent = None, strict: Strict = False) -> int:
    """Find faults of the server, the connection to it, and the keys.

    Prints one line per check: ok, warning, broken, or unknown if it could not be checked, for example because a managed
    service forbids CONFIG. What is not ok comes with why it matters and the command that fixes it. Nothing is changed. To
    see everything it needs permissions that workers should not have: give it a user of its own.

    Examples:
      redis-sessions doctor
      redis-sessions doctor --agent claude --max-age 7d
      redis-sessions doctor --strict --json > doctor.json || mail -s "redis-sessions" me < doctor.json
      redis-sessions doctor --json | jq -r '.findings[] | select(.status == "broken").remedy'
    """
    register_users_runtimes()
    with at.store() as store, show.progress("looking") as progress:
        diagnosis = store.doctor(agent, progress)
    at.put_result(diagnosis, lambda: _show(diagnosis))
    well = not diagnosis.broken and not (strict and diagnosis.warnings + diagnosis.unknown)
    return exits.DONE if well else exits.PARTLY


def _show(diagnosis: "Diagnosis") -> None:
    from rich.console import Group

    table = tables.table({}, {}, {"overflow": "fold"}, heading=False)
    for finding in diagnosis.findings:
        table.add_row(show.cell(finding.status, _STYLES[finding.status]), finding.check, show.cell(finding.found))
        if finding.status != "ok":
            table.add_row("", "", show.cell(f"why: {finding.why}", "dim"))
            table.add_row("", "", show.cell(f"fix: {finding.remedy}", "dim"))
    warnings = count(diagnosis.warnings, "warning")
    summary = f"{diagnosis.broken} broken, {warnings}, {diagnosis.unknown} unknown, {diagnosis.ok} ok"
    show.display(table, Group(show.cell(summary, "bold")))
    if any((finding.remedy or "").startswith("redis-cli") for finding in diagnosis.findings):
        show.remark(
            "redis-cli needs the address of this server (-h, -p, --user; or -u); "
            "CONFIG SET survives a restart only with CONFIG REWRITE, or in the server's configuration file"
        )


@on_a_store
def retime(at: Options, context: typer.Context, *, dry_run: DryRun = False, yes: Yes = False) -> int:
    """Set the max age of the namespace, and shorten longer TTLs to it.

    For use after the max age was lowered: sessions that were saved before keep their longer TTL until they are saved again.
    Sessions with more time left than --max-age (or --config) says get that TTL, and so do those without one; and that is the
    max age of the namespace from then on, which reports use and workers are compared with. No TTL is lengthened, nothing is
    deleted, and values that are not session IDs are counted and left alone. A second run changes nothing. It asks at a
    terminal.

    Examples:
      redis-sessions retime --max-age 90m --dry-run
      redis-sessions retime --max-age 90m
      redis-sessions retime --config config/agents.json --yes --json | jq .shortened
    """
    settings = at.settings()
    if "session_max_age_ms" not in settings.model_fields_set:
        raise InvalidSettings("no max age is given", remedy="give the one to set: --max-age, or a --config that has it")
    max_age_ms = settings.session_max_age_ms
    age = exact_duration(max_age_ms)
    _check_agreement(at, context, age)
    question = f"Set the max age of namespace {settings.namespace} to {age}, and shorten what lives longer?"
    if not dry_run and not confirmed(question, yes=yes):
        return exits.PARTLY
    with at.store() as store, show.progress("looking" if dry_run else "shortening") as progress:
        result = store.retime(max_age_ms, dry_run=dry_run, progress=progress)
    at.put_result(result, lambda: tables.show_retime(result, max_age_ms, dry_run=dry_run))
    return exits.PARTLY if result.approximate else exits.DONE


def _check_agreement(at: Options, context: typer.Context, age: str) -> None:
    """Raise InvalidSettings if the environment overrules the max age of a file that was named on the command line."""
    from redis_sessions.settings import StoreSettings

    sources = [source and source.name for source in map(context.get_parameter_source, ("max_age", "config"))]
    if at.config is None or sources != ["ENVIRONMENT", "COMMANDLINE"]:
        return
    in_file = StoreSettings.from_json_file(at.config)
    file_age = exact_duration(in_file.session_max_age_ms)
    if "session_max_age_ms" in in_file.model_fields_set and file_age != age:
        raise InvalidSettings(f"{MAX_AGE_VARIABLE} is {age}, but {at.config} says {file_age}", remedy="give --max-age")
