"""Write the literature in the formats of other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb.export import exports  # noqa: E402
from kb.files import replace_file  # noqa: E402
from kb.load import Unreadable, load_literature  # noqa: E402
from kb.render import project  # noqa: E402


def main(
    folder: Annotated[Path, typer.Argument(help="Where to write.")] = ROOT / "build" / "exports",
    file: Annotated[Path, typer.Option(help="Literature file.")] = ROOT / "papers.yaml",
) -> None:
    """Exit 0 when written, 1 when the folder cannot be written, 2 when the file is not valid."""
    try:
        files = exports(load_literature(file), project(ROOT).repository)
    except Unreadable as error:
        typer.echo(str(error.problem), err=True)
        raise typer.Exit(2) from None
    try:
        for name, data in files.items():
            replace_file(folder / name, data)
    except OSError as error:
        typer.echo(f"error: cannot write to {folder}: {error.strerror}; name a folder", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"wrote {len(files)} files to {folder}")


if __name__ == "__main__":
    typer.run(main)
