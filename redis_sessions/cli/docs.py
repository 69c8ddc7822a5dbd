"""`docs`: list the pages of the manual, or show one. They are part of the installed package."""

import re
import sys
from importlib import resources
from typing import Annotated, Final

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.errors import InvalidSettings

INDEX: Final = "index"
_SUFFIX: Final = ".md"
_LINK = re.compile(r"\]\(([a-z]+)\.md\)")


def pages(incomplete: str) -> list[str]:
    """Names of pages that begin so, for shell completion."""
    return [name for name in manual() if name.startswith(incomplete)]


Page = Annotated[
    str | None, typer.Argument(metavar="PAGE", help="Name of a page. Default: list the pages.", autocompletion=pages)
]


def docs(page: Page = None) -> int:
    """Read the manual.

    Without PAGE, list the pages, a line each. With it, show that page: formatted at a terminal, as Markdown in a pipe or
    file.

    Examples:
      redis-sessions docs
      redis-sessions docs agents
      redis-sessions docs troubleshooting | less
    """
    texts = manual()
    if page is None:
        width = max(map(len, texts))
        for name, content in texts.items():
            show.put(f"{name:<{width}}  {content.splitlines()[0].removeprefix('# ')}")
        return exits.DONE
    text = texts.get(page.removesuffix(_SUFFIX))
    if text is None:
        raise InvalidSettings(f"the manual has no page {page[:40]!r}", remedy=f"name one of {', '.join(texts)}")
    if show.is_terminal(sys.stdout):
        _display(text)
    else:
        show.put(text.rstrip("\n"))
    return exits.DONE


def _display(text: str) -> None:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import Markdown, TableElement
    from rich.table import Table

    class FoldedTable(TableElement):
        """A table that folds words longer than their column. Rich would cut them off, and commands and names with them."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for part in super().__rich_console__(console, options):
                if isinstance(part, Table):
                    for column in part.columns:
                        column.overflow = "fold"
                yield part

    class Manual(Markdown):
        elements = Markdown.elements | {"table_open": FoldedTable}

    show.display(Manual(text, hyperlinks=False))


def manual() -> dict[str, str]:
    """Return the text of every page by its name, the index first, then in the order in which the index links to them."""
    folder = resources.files("redis_sessions").joinpath("docs")
    files = [file for file in folder.iterdir() if file.name.endswith(_SUFFIX)]
    texts = {file.name.removesuffix(_SUFFIX): file.read_text("utf-8") for file in files}
    order = [INDEX, *_LINK.findall(texts[INDEX])]
    return {name: texts[name] for name in sorted(texts, key=lambda name: order.index(name) if name in order else len(order))}
