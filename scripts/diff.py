"""Say in words what changed between two versions of papers.yaml."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb.diff import as_json, as_markdown, as_text, differences  # noqa: E402
from kb.load import Problem, Tree, Unreadable, parse, read_text  # noqa: E402


def read(path: Path) -> Tree:
    """The data of a literature file that can be taken apart without doubt.

    Raises:
        Unreadable: on the first thing that stands in the way.
    """
    tree = parse(read_text(path), path.name)
    if tree.problems:
        raise Unreadable(tree.problems[0])
    if not isinstance(tree.data, dict):
        message, mend = "the top level is no mapping", "give a literature file"
        raise Unreadable(Problem(path.name, 1, "", "", "not-a-mapping", "error", message, mend))
    return tree


def main(
    old: Annotated[Path, typer.Argument(help="The file before.")],
    new: Annotated[Path, typer.Argument(help="The file after.")],
    json_out: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A list for a review.")] = False,
) -> None:
    """Exit 0 when nothing changed, 1 when something did, 2 when a file cannot be used."""
    if json_out and markdown:
        typer.echo("error: give one of --json and --markdown", err=True)
        raise typer.Exit(2)
    try:
        changes = differences(read(old).data, read(new).data)
    except Unreadable as error:
        typer.echo(str(error.problem), err=True)
        raise typer.Exit(2) from None
    if json_out:
        typer.echo(json.dumps(as_json(changes), indent=2, ensure_ascii=False))
    else:
        typer.echo(as_markdown(changes) if markdown else as_text(changes), nl=False)
    if changes:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
