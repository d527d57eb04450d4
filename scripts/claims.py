"""Recompute every claim on parameters and MACs and keep the answers in site/claims.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb.files import replace_file  # noqa: E402
from kb.load import Unreadable, load_literature  # noqa: E402

TARGET = ROOT / "site" / "claims.json"


def main(
    check: Annotated[bool, typer.Option(help="Write nothing; fail when not current.")] = False,
) -> None:
    """Exit 0 when done or current, 1 when not current, 2 when papers.yaml cannot be used."""
    try:
        literature = load_literature(ROOT / "papers.yaml")
    except Unreadable as error:
        typer.echo(str(error.problem), err=True)
        raise typer.Exit(2) from None
    from methods.harness.claims import claims, summary  # torch takes a while

    found = claims(literature)
    text = json.dumps([claim.as_json() for claim in found], indent=1, ensure_ascii=False) + "\n"
    name = TARGET.relative_to(ROOT)
    if check and not (TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text):
        typer.echo(f"{name}:1: error: not current; run scripts/claims.py [claims-current]")
        raise typer.Exit(1)
    if not check:
        replace_file(TARGET, text.encode())
    counts = ", ".join(f"{count} {verdict}" for verdict, count in summary(found).items())
    typer.echo(f"{name}: {len(found)} claims: {counts}")


if __name__ == "__main__":
    typer.run(main)
