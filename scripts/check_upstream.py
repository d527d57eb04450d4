"""Find preprints of papers.yaml that have been published since; changes nothing."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb.fetch import connect  # noqa: E402
from kb.load import Unreadable, load, read_text  # noqa: E402
from kb.upstream import News, ask, patch, waiting  # noqa: E402
from kb.write import write_atomically  # noqa: E402


def stop(message: str) -> NoReturn:
    """Say on one line what is unusable, and leave."""
    typer.echo(f"check_upstream: {' '.join(message.split())}", err=True)
    raise typer.Exit(2)


def show(news: list[News], file: str) -> None:
    """A table of what was found, and a line of counts."""
    table = Table("entry", "verdict", "service", "says", "source", title="Upstream")
    for item in news:
        for witness in item.witnesses:
            said = witness.work.publication
            words = f"{said['type']} {said.get('venue', '')} {said.get('year', '')}"
            where = f"{item.id} ({file}:{item.line})"
            cells = (where, item.verdict, witness.service, words, witness.work.source)
            table.add_row(*(escape(cell) for cell in cells))
    console = Console()
    if table.row_count:
        console.print(table)
    counts = Counter(item.verdict for item in news)
    text = ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())
    typer.echo(f"{len(news)} preprints and submissions: {text}")


def main(
    file: Annotated[Path, typer.Argument(help="Literature file.")] = ROOT / "papers.yaml",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    out: Annotated[Path | None, typer.Option("--patch", help="Write the patch here.")] = None,
    entry: Annotated[list[str] | None, typer.Option(help="Ask about this entry alone.")] = None,
    test_server: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Exit 0 whatever was found, 2 when the input is unusable. Apply with: git apply PATCH."""
    try:
        text = read_text(file)
        corpus = load(file)
        client, endpoints = connect(test_server)
    except Unreadable as error:
        stop(str(error.problem))
    except (OSError, sqlite3.Error) as error:
        stop(f"the cache folder cannot be used: {error}; set DIFFUSION_PRUNING_CACHE")
    chosen = [e for e in waiting(corpus) if not entry or e.record.id in entry]
    if unknown := set(entry or ()) - {e.record.id for e in chosen}:
        client.close()
        stop(f"{', '.join(sorted(unknown))}: no preprint or submission has this id")

    news: list[News] = []
    with client, Progress(console=Console(stderr=True), transient=True) as progress:
        for one in progress.track(chosen, description="preprints"):
            news.append(ask(one, corpus.line(one), client, endpoints))
    diff, left_out = patch(corpus, text, news)
    for name in left_out:
        message = f"{name} is not in canonical form: run scripts/format.py, then this again"
        typer.echo(f"check_upstream: {message}", err=True)
    if out is not None:
        try:
            write_atomically(out, diff)
        except OSError as error:
            stop(f"{out} cannot be written: {error.strerror}")
    if as_json:
        found = {"entries": [n.as_json() for n in news], "left_out": list(left_out), "patch": diff}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    show(news, file.name)
    if diff and out is None:
        typer.echo(diff, nl=False)


if __name__ == "__main__":
    typer.run(main)
