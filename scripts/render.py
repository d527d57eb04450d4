"""Write README.md, or check that it is current; prepare the pages of the site."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from jinja2 import TemplateError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb import recomputed, results  # noqa: E402
from kb.export import exports  # noqa: E402
from kb.files import replace_file  # noqa: E402
from kb.load import Unreadable, load_literature  # noqa: E402
from kb.render import Inputs, project, read_methods, readme, stage  # noqa: E402

TEMPLATES = ROOT / "site" / "templates"


def optional(path: Path) -> Any:
    """The data of a JSON file, or nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def gather(literature: Path) -> Inputs:
    """Everything that is rendered, from the files of the repository."""
    measured = ROOT / "site" / "measured.json"
    claims, benchmarks = ROOT / "site" / "claims.json", ROOT / "site" / "benchmarks.json"
    masks = ROOT / "site" / "mask_benchmark.json"
    tables = {task: results.table(task) for task in results.tasks()}
    return Inputs(
        literature=load_literature(literature),
        project=project(ROOT),
        methods=read_methods(ROOT / "methods"),
        results=tables,
        images={task: tuple(sorted((results.ROOT / task).glob("*.png"))) for task in tables},
        experiments=results.experiments(),
        questions=read_methods(ROOT / "methods" / "experiments"),
        method_images={
            task: {p.stem: p for p in sorted((results.ROOT / task / "samples").glob("*.png"))}
            for task in tables
        },
        measured=optional(measured),
        contributing=(ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        recomputed=recomputed.read(claims) if claims.is_file() else (),
        benchmarks=optional(benchmarks),
        masks=optional(masks),
    )


def main(
    check: Annotated[bool, typer.Option(help="Write nothing; fail when not current.")] = False,
    site: Annotated[bool, typer.Option(help="Also fill build/site-src.")] = False,
    file: Annotated[Path, typer.Option(help="Literature file.")] = ROOT / "papers.yaml",
) -> None:
    """Exit 0 when done or current, 1 when README.md is not current, 2 when an input is invalid."""
    try:
        inputs = gather(file)
        text = readme(inputs, TEMPLATES)
    except Unreadable as error:
        typer.echo(str(error.problem), err=True)
        raise typer.Exit(2) from None
    except (OSError, ValueError, TemplateError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    target = ROOT / "README.md"
    current = target.is_file() and target.read_text(encoding="utf-8") == text
    if check and not current:
        typer.echo("README.md:1: error: not current; run scripts/render.py [readme-current]")
        raise typer.Exit(1)
    if not check and not current:
        replace_file(target, text.encode())
        typer.echo("wrote README.md")
    if site:
        staged = ROOT / "build" / "site-src"
        files = exports(inputs.literature, inputs.project.repository)
        count = stage(inputs, TEMPLATES, ROOT / "site" / "docs", staged, files)
        typer.echo(f"wrote {count} pages to {staged.relative_to(ROOT)}")


if __name__ == "__main__":
    typer.run(main)
