"""Write papers.yaml in its one canonical form."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb.load import Unreadable, read_text  # noqa: E402
from kb.write import format_text, write_atomically  # noqa: E402


def main(
    file: Annotated[Path, typer.Argument(help="Literature file.")] = ROOT / "papers.yaml",
    check: Annotated[bool, typer.Option("--check", help="Change nothing, only tell.")] = False,
) -> None:
    """Exit 0 when the file is now canonical, 1 when --check finds it is not, 2 when unreadable."""
    try:
        text = read_text(file)
        formatted = format_text(text, file.name)
    except Unreadable as error:
        typer.echo(str(error.problem))
        raise typer.Exit(2) from None
    if formatted == text:
        typer.echo(f"{file.name}: canonical")
        return
    pairs = zip(text.splitlines(), formatted.splitlines(), strict=False)
    line = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), 1)
    if check:
        typer.echo(
            f"{file.name}:{line}: error: not in canonical form; run scripts/format.py [format]"
        )
        raise typer.Exit(1)
    try:
        write_atomically(file.resolve(), formatted)
    except OSError as error:
        typer.echo(f"{file.name}:1: error: cannot be written: {error.strerror}; check it [write]")
        raise typer.Exit(2) from None
    typer.echo(f"{file.name}: formatted, first change in line {line}")


if __name__ == "__main__":
    typer.run(main)
