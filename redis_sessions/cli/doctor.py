"""The commands that look whether all is well, and that mend what a lowered max age left behind."""

from typing import Annotated

import typer

from redis_sessions.cli import exits, show
from redis_sessions.cli.options import Options, on_a_store

DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; tell how many it would be.")]


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
