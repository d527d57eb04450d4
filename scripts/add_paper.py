"""Add a paper to papers.yaml from its arXiv id, DOI or OpenReview id."""

from __future__ import annotations

import sqlite3
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.syntax import Syntax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb import draft as drafts  # noqa: E402
from kb.fetch import Identifier, Unusable, Work, connect, fetch, identify, recorded  # noqa: E402
from kb.http import Failure, Refused  # noqa: E402
from kb.load import Corpus, Unreadable, corpus, load, parse, read_text  # noqa: E402
from kb.rules import check  # noqa: E402
from kb.schema import Family, Paper, Section  # noqa: E402
from kb.write import format_entry, insert_entry, write_atomically  # noqa: E402

MAX_RECORDED = 4 * 2**20
_BOM = b"\xef\xbb\xbf"


def stop(message: str, code: int) -> NoReturn:
    """Say on one line why nothing was written, and leave."""
    typer.echo(f"add_paper: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def read_recorded(path: Path, wanted: Identifier | None) -> tuple[Work, ...]:
    """The work of a recorded response."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_RECORDED + 1)
    except OSError as error:
        stop(f"{path} cannot be read: {error.strerror}", 2)
    if len(data) > MAX_RECORDED:
        stop(f"{path} is larger than {MAX_RECORDED // 2**20} MB; record one response alone", 2)
    return recorded(data, wanted)


def find(
    identifier: Identifier | None, source: Path | None, server: str | None
) -> tuple[Work, ...]:
    """What is known about the paper, from a recorded response or from the services."""
    try:
        if source is not None:
            return read_recorded(source, identifier)
        if identifier is None:
            stop("give an identifier, or a recorded response with --from", 2)
        client, endpoints = connect(server)
        with client:
            return fetch(identifier, client, endpoints)
    except (Unusable, Failure, Refused) as error:
        stop(str(error), 2)
    except (OSError, sqlite3.Error) as error:
        stop(f"the cache folder cannot be used: {error}; set DIFFUSION_PRUNING_CACHE", 2)


def show(
    entry: dict[str, Any],
    works: tuple[Work, ...],
    suggestions: tuple[drafts.Suggestion, ...],
    twins: tuple[drafts.Twin, ...],
    file: str,
) -> None:
    """The preview on standard output, remarks on standard error."""
    text = format_entry(entry, Paper)
    console = Console(soft_wrap=True)
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default"))
    else:
        typer.echo(text, nl=False)
    for suggestion in suggestions:
        reason = f"because of {suggestion.because!r}"
        typer.echo(f"suggested: {suggestion.field}: {suggestion.value}, {reason}", err=True)
    for hint in (h for work in works for h in work.hints):
        typer.echo(f"check: {hint}", err=True)
    for twin in twins:
        typer.echo(f"warning: {file}:{twin.line}: {twin.id} has {twin.reason}", err=True)


def refuse_flaws(entry: dict[str, Any], new: Corpus) -> None:
    """Leave when the new entry breaks the schema or a rule."""
    flaws = [p for p in check(new) if p.entry == entry["id"] and p.severity == "error"]
    for flaw in flaws:
        text = f"{flaw.field}: {flaw.message}; {flaw.mend} [{flaw.rule}]"
        typer.echo(f"add_paper: {entry['id']}: {text}", err=True)
    if flaws:
        stop(f"nothing was written: the draft has {len(flaws)} errors", 1)


def main(
    id: Annotated[
        str | None, typer.Argument(help="arXiv id, DOI, OpenReview id, or the address of one.")
    ] = None,
    file: Annotated[Path, typer.Option(help="Literature file.")] = ROOT / "papers.yaml",
    source: Annotated[
        Path | None, typer.Option("--from", help="Recorded response; nothing is asked.")
    ] = None,
    summary: Annotated[
        str | None, typer.Option(help="What is special and what it costs, in own words.")
    ] = None,
    name: Annotated[str | None, typer.Option("--id", help="Id of the new entry.")] = None,
    section: Annotated[Section | None, typer.Option(help="Half of the list.")] = None,
    family: Annotated[Family | None, typer.Option(help="Group it is listed under.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the entry only.")] = False,
    test_server: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Exit 0 when added (or shown with --dry-run), 1 when refused, 2 when nothing can be read."""
    try:
        identifier = identify(id) if id is not None else None
        before = load(file)
    except Unusable as error:
        stop(str(error), 2)
    except Unreadable as error:
        stop(str(error.problem), 2)
    works = find(identifier, source, test_server)

    suggestions = drafts.suggest(works[0].title, works[0].abstract)
    entry = drafts.draft(
        works,
        suggestions,
        id=name or drafts.entry_id(works[0].title, before.ids["papers"]),
        today=datetime.now(UTC).date().isoformat(),
        summary=summary,
        section=section,
        family=family,
    )
    twins = drafts.twins(entry, before)
    show(entry, works, suggestions, twins, file.name)

    certain = next((t for t in twins if t.certain), None)
    if certain is not None:
        stop(f"{file.name}:{certain.line}: {certain.id} is this paper: {certain.reason}", 1)
    if "family" not in entry:
        stop(f"no word suggests a family; choose --family of: {', '.join(Family)}", 1)
    if summary is None:
        if dry_run:
            return
        stop("nothing was written: add --summary 'what is special and what it costs', own words", 1)
    for work in works:
        if run := drafts.copied(summary, work.abstract):
            stop(f"the summary is copied from the abstract: '{run}'; use own words", 1)

    try:
        # Read again: asking the services may have taken a while.
        text = read_text(file)
        mark = "\ufeff" if file.read_bytes()[:3] == _BOM else ""
        inserted = insert_entry(text, "papers", entry, file.name)
        refuse_flaws(entry, corpus(parse(inserted, file.name)))
        if dry_run:
            return
        write_atomically(file.resolve(), mark + inserted)
    except Unreadable as error:
        stop(str(error.problem), 1)
    except OSError as error:
        stop(f"{file} cannot be written: {error.strerror}", 2)
    typer.echo(f"added {entry['id']} to {file.name}", err=True)


if __name__ == "__main__":
    typer.run(main)
