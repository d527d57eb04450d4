"""Check papers.yaml against the schema and every rule."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb.load import Problem, Unreadable, load  # noqa: E402
from kb.rules import check  # noqa: E402
from kb.schema import json_schema  # noqa: E402
from kb.write import write_atomically  # noqa: E402

SCHEMA = ROOT / "schema" / "papers.schema.json"


class SchemaAction(StrEnum):
    CHECK = "check"
    WRITE = "write"


def schema_text() -> str:
    """The JSON Schema file as it must be."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def do_schema(action: SchemaAction) -> None:
    """Write schema/papers.schema.json, or leave with 1 when it is not current."""
    if action is SchemaAction.WRITE:
        SCHEMA.parent.mkdir(exist_ok=True)
        write_atomically(SCHEMA, schema_text())
        typer.echo(f"wrote {SCHEMA.relative_to(ROOT)}")
    elif not SCHEMA.is_file() or SCHEMA.read_text(encoding="utf-8") != schema_text():
        typer.echo(
            f"{SCHEMA.relative_to(ROOT)}:1: error: differs from kb/schema.py; "
            "run scripts/validate.py --schema write [schema-current]"
        )
        raise typer.Exit(1)


def report(problems: tuple[Problem, ...], count: int, as_json: bool) -> None:
    """Print one line per problem and a line of counts, or one JSON object."""
    errors = sum(p.severity == "error" for p in problems)
    warnings = len(problems) - errors
    if as_json:
        counts = {"entries": count, "errors": errors, "warnings": warnings}
        found = {"problems": [p.as_json() for p in problems], "counts": counts}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for problem in problems:
        typer.echo(str(problem))
    typer.echo(f"{count} valid entries, {errors} errors, {warnings} warnings")


def main(
    file: Annotated[Path, typer.Argument(help="Literature file.")] = ROOT / "papers.yaml",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    strict: Annotated[bool, typer.Option(help="Warnings fail too.")] = False,
    schema: Annotated[
        SchemaAction | None, typer.Option(help="Check or write schema/papers.schema.json.")
    ] = None,
) -> None:
    """Exit 0 when clean, 1 when problems were found, 2 when the file cannot be read."""
    if schema is not None:
        do_schema(schema)
    try:
        corpus = load(file)
    except Unreadable as error:
        report((error.problem,), 0, as_json)
        raise typer.Exit(2) from None
    problems = check(corpus)
    report(problems, len(corpus.entries), as_json)
    if any(strict or p.severity == "error" for p in problems):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
