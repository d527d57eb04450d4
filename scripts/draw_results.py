"""Draw a task's committed results: quality against MACs, and images at the same noise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kb import results
from kb.render import dense_first, rows_of
from methods.harness import report, run
from methods.harness.checkpoint import read_tensors
from methods.harness.compare import PICTURED


def main(
    task: Annotated[str, typer.Argument(help="a task with committed results")],
    runs: Annotated[Path, typer.Option(help="where the runs kept their images")] = run.RUNS,
) -> None:
    """Write pareto.png, and samples.png where the images of the runs are at hand."""
    try:
        table = results.table(task)
    except ValueError as error:
        typer.echo(f"{error}", err=True)
        raise typer.Exit(1) from error
    folder = run.RESULTS / task
    report.draw_pareto(table, folder / "pareto.png")
    typer.echo("drew pareto.png")
    rows = []
    for row in table["rows"]:
        images = sorted((runs / task / row["slug"]).glob("*/samples.safetensors"))
        if images:
            tensors, _ = read_tensors(images[0])
            rows.append((row, tensors["images"][:PICTURED]))
    if len(rows) < len(table["rows"]):
        typer.echo(f"samples left as they are: {len(rows)} of {len(table['rows'])} rows have")
        typer.echo("their images; run the comparison on this machine to draw them")
        return
    by_slug = {row["slug"]: (row, images) for row, images in rows}
    first = [by_slug[row["slug"]] for row in results.headline(table)]
    report.draw_samples(first, folder / "samples.png")
    typer.echo("drew samples.png")
    methods = {part.split("-")[0] for row, _ in rows for part in row["slug"].split("+")}
    for name in sorted(methods - {"dense", "finetune"}):
        own = [by_slug[row["slug"]] for row in dense_first(table, rows_of(name, table))]
        report.draw_samples(own, folder / "samples" / f"{name}.png")
        typer.echo(f"drew samples/{name}.png")


if __name__ == "__main__":
    typer.run(main)
