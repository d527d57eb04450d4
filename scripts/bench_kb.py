"""Time and memory of validation, rendering and export on generated entries."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb.export import exports, replace_file  # noqa: E402
from kb.load import Corpus, corpus, decode, parse  # noqa: E402
from kb.render import Inputs, project, read_methods, readme, stage  # noqa: E402
from kb.rules import check  # noqa: E402
from kb.schema import Literature  # noqa: E402
from kb.write import format_document  # noqa: E402

WORDS = (ROOT / "site" / "templates" / "README.md.j2").read_text(encoding="utf-8").lower().split()
ROWS = 10


def generated(count: int, seed: int = 0) -> str:
    """A literature file with `count` papers of up to ten rows, drawn from those in papers.yaml."""
    source = parse((ROOT / "papers.yaml").read_text(encoding="utf-8"), "papers.yaml").data
    models = [paper for paper in source["papers"] if paper.get("results")]
    draw = random.Random(seed)
    words = sorted({"".join(c for c in word if c.isalpha()) for word in WORDS} - {""})
    papers = []
    for index in range(count):
        paper: dict[str, Any] = json.loads(json.dumps(draw.choice(models)))
        month = 1 + index // 10000 % 12
        paper |= {
            "id": f"generated-{index:06d}",
            "title": " ".join(draw.choices(words, k=8)) + f" {index}",
            "arxiv": f"24{month:02d}.{index % 10000 + 1:05d}",
            "year": 2024,
            "results": paper["results"][:ROWS],
            "relations": [{"type": "compares-with", "to": "generated-000000"}] if index else [],
        }
        for key in ("first_posted", "doi", "openreview", "dblp", "alternate_titles", "page", "hub"):
            paper.pop(key, None)
        for code in paper.get("code", ()):
            if "url" in code:
                code["url"] = f"https://github.com/generated/repository-{index}"
        papers.append(paper)
    return format_document({"schema_version": "1.0", "papers": papers})


def literature(found: Corpus) -> Literature:
    """The records of a corpus as one value."""
    return Literature(
        schema_version="1.0",
        papers=tuple(e.record for e in found.papers),
        tools=tuple(e.record for e in found.tools),
        tutorials=tuple(e.record for e in found.tutorials),
    )


def measure(file: Path) -> dict[str, float]:
    """CPU seconds of each stage, wall seconds of them all, peak memory of this process."""
    templates, docs = ROOT / "site" / "templates", ROOT / "site" / "docs"
    seconds: dict[str, float] = {}
    started, wall = time.process_time(), time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started, wall
        now, clock = time.process_time(), time.perf_counter()
        seconds[name] = now - started
        seconds["wall"] = seconds.get("wall", 0.0) + clock - wall
        started, wall = now, clock

    found = corpus(parse(decode(file.read_bytes(), file.name), file.name))
    problems = check(found)
    lap("validate")
    known = literature(found)
    inputs = Inputs(known, project(ROOT), methods=read_methods(ROOT / "methods"))
    with tempfile.TemporaryDirectory() as folder:
        started, wall = time.process_time(), time.perf_counter()
        replace_file(Path(folder) / "README.md", readme(inputs, templates).encode())
        lap("readme")
        stage(inputs, templates, docs, Path(folder) / "site")
        lap("pages")
        for name, data in exports(known, inputs.project.repository).items():
            replace_file(Path(folder) / "data" / name, data)
        lap("exports")
    return {
        **seconds,
        "rows": sum(len(p.results) for p in known.papers),
        "errors": sum(p.severity == "error" for p in problems),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(
    counts: Annotated[list[int] | None, typer.Argument(help="Numbers of papers.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Processes per number; the best counts.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
    one: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print a table; each measurement runs in a process of its own."""
    if one is not None:
        typer.echo(json.dumps(measure(one)))
        return
    table = []
    for count in counts or [300, 1000, 3000, 10000]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "papers.yaml"
            file.write_text(generated(count), encoding="utf-8")
            runs = [json.loads(_run(file)) for _ in range(repeats)]
            megabytes = file.stat().st_size / 2**20
        best = {key: min(run[key] for run in runs) for key in runs[0]}
        table.append({"papers": count, "file_mb": megabytes, **best})
    if as_json:
        typer.echo(json.dumps(table, indent=1))
        return
    typer.echo("CPU seconds of one thread; wall seconds of all stages together")
    typer.echo(
        "papers   rows  file MB  validate  README  pages  exports  render sum   wall  peak MB"
    )
    for row in table:
        rendered = row["readme"] + row["pages"] + row["exports"]
        typer.echo(
            f"{row['papers']:6d} {row['rows']:6.0f} {row['file_mb']:8.1f} {row['validate']:9.2f} "
            f"{row['readme']:7.2f} {row['pages']:6.2f} {row['exports']:8.2f} {rendered:11.2f} "
            f"{row['wall']:6.2f} {row['peak_mb']:8.0f}"
        )


def _run(file: Path) -> str:
    command = [sys.executable, str(Path(__file__).resolve()), "--one", str(file)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout


if __name__ == "__main__":
    typer.run(main)
