"""Check that what papers.yaml points to is still there and is what it should be."""

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

from kb.fetch import Unusable, connect  # noqa: E402
from kb.http import cache_folder  # noqa: E402
from kb.links import Finding, Kind, Memory, Patience, Verdict, check, links  # noqa: E402
from kb.load import Unreadable, load  # noqa: E402

_COLOURS = {
    Verdict.OK: "green",
    Verdict.DEAD: "red",
    Verdict.MISMATCH: "red",
    Verdict.REFUSED: "red",
    Verdict.UNKNOWN: "dim",
}


def stop(message: str) -> NoReturn:
    """Say on one line what is unusable, and leave."""
    typer.echo(f"check_links: {' '.join(message.split())}", err=True)
    raise typer.Exit(2)


def show(findings: list[Finding], file: str, everything: bool) -> None:
    """A table of what is not as it should be, red first, and a line of counts."""
    table = Table("verdict", "link", "where", "detail", title="Links")
    order = sorted(findings, key=lambda f: (not f.red, f.verdict, f.link.key))
    for finding in order:
        if finding.verdict is Verdict.OK and not everything:
            continue
        first, *others = finding.link.uses
        where = f"{file}:{first.line} {first.entry}" + (f" +{len(others)}" if others else "")
        detail = finding.detail + (f"; use {finding.target}" if finding.target else "")
        detail += f" (since {finding.since})" if finding.since else ""
        colour = _COLOURS.get(finding.verdict, "yellow")
        cells = (finding.link.key, where, detail)
        table.add_row(f"[{colour}]{finding.verdict.value}[/]", *(escape(cell) for cell in cells))
    console = Console()
    if table.row_count:
        console.print(table)
    counts = Counter(f.verdict.value for f in findings)
    typer.echo(f"{len(findings)} links: " + ", ".join(f"{n} {v}" for v, n in counts.most_common()))


def main(
    file: Annotated[Path, typer.Argument(help="Literature file.")] = ROOT / "papers.yaml",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Show links that are well too.")
    ] = False,
    only: Annotated[list[Kind] | None, typer.Option(help="Check links of this kind alone.")] = None,
    sources: Annotated[bool, typer.Option(help="Also where facts were read.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="Memory of earlier days; in the cache folder by default.")
    ] = None,
    failures: Annotated[int, typer.Option(min=1, help="Days of absence before red.")] = 3,
    days: Annotated[int, typer.Option(min=0, help="Least days between first and last.")] = 7,
    workers: Annotated[int, typer.Option(min=1, max=32, help="Hosts asked at once.")] = 8,
    test_server: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Exit 0 when nothing is red, 1 when something is, 2 when the input is unusable.

    Red are links that were absent on several days, identifiers of another work, and addresses that
    must not be asked. GITHUB_TOKEN, where it is set, raises GitHub's limit.
    """
    try:
        corpus = load(file)
        memory = Memory(state or cache_folder() / "links.jsonl")
        client, endpoints = connect(test_server)
    except Unreadable as error:
        stop(str(error.problem))
    except Unusable as error:
        stop(str(error))
    except (OSError, sqlite3.Error) as error:
        stop(f"the cache folder or state file cannot be used: {error}")
    if corpus.problems:
        skipped = f"{len(corpus.problems)} problems; entries with errors are not checked"
        typer.echo(f"check_links: {file.name} has {skipped}: run scripts/validate.py", err=True)

    wanted = [k for k in links(corpus, sources) if not only or k.kind in only]
    with client, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("links", total=len(wanted))
        findings = check(
            wanted,
            client,
            endpoints,
            memory,
            patience=Patience(failures, days),
            workers=workers,
            progress=lambda count: progress.advance(task, count),
        )
    try:
        memory.save()
    except OSError as error:
        stop(f"the state file cannot be written: {error}")
    red = any(finding.red for finding in findings)
    if as_json:
        counts = dict(Counter(f.verdict.value for f in findings).most_common())
        found = {"red": red, "counts": counts, "links": [f.as_json() for f in findings]}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        show(findings, file.name, everything)
    if red:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
