"""Draw a task's committed results: quality against MACs, and images at the same noise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb import results  # noqa: E402
from methods.harness import compare, report, run  # noqa: E402


def main(
    task: Annotated[str, typer.Argument(help="a task with committed results")],
    runs: Annotated[Path, typer.Option(help="where the runs kept their images")] = run.RUNS,
) -> None:
    """Write pareto.png, and grids of samples where the images of all runs are at hand."""
    try:
        table = results.table(task)
    except ValueError as error:
        typer.echo(f"{error}", err=True)
        raise typer.Exit(1) from error
    images = compare.kept_images(table, runs, compare.STANDARD_SEEDS[0])
    for path in report.draw_committed(table, images, run.RESULTS / task):
        typer.echo(f"drew {path.relative_to(ROOT)}")
    if len(images) < len(table["rows"]):
        typer.echo(f"grids left as they are: {len(images)} of {len(table['rows'])} rows have their")
        typer.echo("images here; run the comparison on this machine to draw them")


if __name__ == "__main__":
    typer.run(main)
