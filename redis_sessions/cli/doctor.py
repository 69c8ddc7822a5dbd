"""The commands that look whether all is well, and that mend what a lowered max age left behind."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.agents import register_users_runtimes
from redis_sessions.cli.options import Options, on_a_store
from redis_sessions.text import count

if TYPE_CHECKING:
    from redis_sessions.doctor.findings import Diagnosis

_STYLES: Final = {"ok": "green", "unknown": "cyan", "warning": "yellow", "broken": "bold red"}

Agent = Annotated[
    str | None,
    typer.Option(
        "--agent",
        metavar="NAME",
        help="Whose sessions these are: claude, gemini, agentcore, … The max age is held against it.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; tell how many it would be.")]


Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 unless all is ok: for a gate.")]


@on_a_store
def doctor(at: Options, *, agent: Agent = None, strict: Strict = False) -> int:
    """Find what is wrong with the server, the way to it, or the keys.

    A line a finding: ok, warning, broken, or unknown where it could not be looked at, as where a managed service forbids
    CONFIG. What is not ok comes with why that matters, and the command that mends it. Nothing is changed. Workers should not
    have all the rights that it takes to see everything; give the doctor a user of its own.

    Examples:
      redis-sessions doctor
      redis-sessions doctor --agent claude --max-age 7d
      redis-sessions doctor --strict --json > doctor.json || mail -s "redis-sessions" me < doctor.json
      redis-sessions doctor --json | jq -r '.findings[] | select(.status == "broken").remedy'
    """
    register_users_runtimes()
    with at.store() as store, show.progress("looking") as progress:
        diagnosis = store.doctor(agent, progress)
    if at.as_json:
        show.put_json(diagnosis.model_dump(mode="json"))
    else:
        _show(diagnosis)
        if any((finding.remedy or "").startswith("redis-cli") for finding in diagnosis.findings):
            show.remark(
                "give redis-cli the way to this server (-h, -p, --user; or -u); "
                "what CONFIG SET sets outlasts a restart only by CONFIG REWRITE, or in the server's own configuration"
            )
    well = not diagnosis.broken and not (strict and diagnosis.warnings + diagnosis.unknown)
    return exits.DONE if well else exits.PARTLY


def _show(diagnosis: "Diagnosis") -> None:
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column()
    table.add_column(overflow="fold")
    for finding in diagnosis.findings:
        table.add_row(show.cell(finding.status, _STYLES[finding.status]), finding.check, show.cell(finding.found))
        if finding.status != "ok":
            table.add_row("", "", show.cell(f"why: {finding.why}", "dim"))
            table.add_row("", "", show.cell(f"mend: {finding.remedy}", "dim"))
    warnings = count(diagnosis.warnings, "warning")
    summary = f"{diagnosis.broken} broken, {warnings}, {diagnosis.unknown} unknown, {diagnosis.ok} ok"
    show.display(table, Group(show.cell(summary, "bold")))


@on_a_store
def retime(at: Options, *, dry_run: DryRun = False) -> int:
    """Let no session live longer than the max age from now on.

    For after the max age was lowered: what was saved before has the longer life until it is saved again. Whatever has more
    time left than --max-age (or --config, or 24 h) then has just that, and what would never expire expires then. No life is
    lengthened, nothing is deleted, and what is no session ID is counted and left alone. Run again, it changes nothing.

    Examples:
      redis-sessions retime --max-age 90m --dry-run
      redis-sessions retime --max-age 90m
      redis-sessions retime --config config/agents.json --json | jq .shortened
    """
    with at.store() as store, show.progress("looking" if dry_run else "shortening") as progress:
        result = store.retime(dry_run=dry_run, progress=progress)
        max_age_ms = store.settings.session_max_age_ms
    if at.as_json:
        show.put_json(result.model_dump(mode="json"))
    else:
        from redis_sessions.cli.tables import show_retime

        show_retime(result, max_age_ms, dry_run=dry_run)
    if not result.approximate:
        return exits.DONE
    show.complain(show.APPROXIMATE)
    return exits.PARTLY
