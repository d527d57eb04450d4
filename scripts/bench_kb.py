"""Time and memory of validation, rendering and export on generated entries, beside a peer."""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb.export import exports  # noqa: E402
from kb.files import replace_file  # noqa: E402
from kb.load import Corpus, corpus, decode, parse  # noqa: E402
from kb.render import Inputs, project, read_methods, readme, stage  # noqa: E402
from kb.rules import check  # noqa: E402
from kb.schema import SCHEMA_VERSION, Literature  # noqa: E402
from kb.write import format_document  # noqa: E402

WORDS = (ROOT / "site" / "templates" / "README.md.j2").read_text(encoding="utf-8").lower().split()
ROWS = 10
# Words that a rule takes for the first person or for praise.
UNWANTED = {"i", "me", "my", "we", "us", "our", "ours", "novel", "best", "powerful", "efficient"}


def generated(count: int, seed: int = 0) -> str:
    """A literature file with `count` papers of up to ten rows, drawn from those in papers.yaml."""
    source = parse((ROOT / "papers.yaml").read_text(encoding="utf-8"), "papers.yaml").data
    models = [p for p in source["papers"] if p.get("results") and p.get("kind", "paper") == "paper"]
    draw = random.Random(seed)
    words = sorted({word for word in WORDS if word.isalpha()} - UNWANTED)
    papers = []
    for index in range(count):
        paper: dict[str, Any] = json.loads(json.dumps(draw.choice(models)))
        month = 1 + index // 10000 % 12
        paper |= {
            "id": f"generated-{index:06d}",
            "title": " ".join(draw.choices(words, k=8)) + f" {index}",
            "summary": " ".join(draw.choices(words, k=25))[:390] + f", number {index}.",
            "arxiv": f"24{month:02d}.{index % 10000 + 1:05d}",
            "year": 2024,
            "publication": {"type": "preprint"},
            "results": [{k: v for k, v in r.items() if k != "of"} for r in paper["results"][:ROWS]],
            "relations": [{"type": "compares-with", "to": "generated-000000"}] if index else [],
        }
        for key in ("first_posted", "doi", "openreview", "dblp", "alternate_titles", "page", "hub"):
            paper.pop(key, None)
        for place, code in enumerate(paper.get("code", ())):
            if "url" in code:
                code["url"] = f"https://github.com/generated/repository-{index}-{place}"
        papers.append(paper)
    return format_document({"schema_version": SCHEMA_VERSION, "papers": papers})


def literature(found: Corpus) -> Literature:
    """The records of a corpus as one value."""
    return Literature(
        schema_version=SCHEMA_VERSION,
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


def stages(count: int, repeats: int) -> dict[str, float]:
    """The best of `repeats` processes on `count` papers."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "papers.yaml"
        file.write_text(generated(count), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).resolve()), "--one", str(file)]
        runs = [json.loads(_run(command)[0]) for _ in range(repeats)]
        size = file.stat().st_size / 2**20
    best = {key: min(run[key] for run in runs) for key in runs[0]}
    return {"papers": count, "file_mb": size, **best}


def against(peer: Path, count: int, repeats: int) -> dict[str, Any]:
    """CPU and wall seconds of whole processes on one file: ours, the peer's, ours, the peer's."""
    found: dict[str, Any] = {"papers": count, "ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "papers.yaml"
        file.write_text(generated(count), encoding="utf-8")
        schema = ROOT / "schema" / "papers.schema.json"
        commands = {
            "ours": [sys.executable, str(ROOT / "scripts" / "validate.py"), str(file)],
            "peer": [str(peer), "--schemafile", str(schema), str(file)],
        }
        for _ in range(repeats):
            for name, command in commands.items():
                _, cpu, wall = _run(command)
                found[name].append({"cpu": round(cpu, 2), "wall": round(wall, 2)})
    return found


def machine() -> str:
    """Processor, number of cores and Python of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next((row.split(":", 1)[1] for row in lines if row.startswith("model name")), "")
    name = model.strip() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main(
    counts: Annotated[list[int] | None, typer.Argument(help="Numbers of papers.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Processes per number; the best counts.")] = 3,
    peer: Annotated[
        Path | None, typer.Option(help="A check-jsonschema program to run beside ours.")
    ] = None,
    peer_counts: Annotated[
        list[int] | None, typer.Option("--peer-count", help="Numbers of papers for the peer.")
    ] = None,
    links: Annotated[Path | None, typer.Option(help="Output of bench_links.py to keep.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write everything here as JSON.")] = None,
    one: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print a table; each measurement runs in a process of its own."""
    if one is not None:
        typer.echo(json.dumps(measure(one)))
        return
    table = [stages(count, repeats) for count in counts or [300, 3000, 10000]]
    show(table)
    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "load": round(os.getloadavg()[0], 1),
        "repeats": repeats,
        "stages": [{key: round(value, 3) for key, value in row.items()} for row in table],
    }
    if peer is not None:
        version = _run([str(peer), "--version"])[0].strip().replace(", version", "")
        runs = [against(peer, count, repeats) for count in peer_counts or [300]]
        record["peer"] = {"name": version, "runs": runs}
        typer.echo(json.dumps(record["peer"], indent=1))
    if links is not None:
        record["links"] = json.loads(links.read_text(encoding="utf-8"))
    if out is not None:
        replace_file(out, (json.dumps(record, indent=1) + "\n").encode())


def show(table: Sequence[dict[str, float]]) -> None:
    """Print the stages."""
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


def _run(command: Sequence[str]) -> tuple[str, float, float]:
    """Output, CPU seconds and wall seconds of a process; problems found are no failure."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1) or not done.stdout:
        last = done.stderr.strip().splitlines()[-1:]
        typer.echo(f"bench_kb: {command[0]} failed: {' '.join(last)}", err=True)
        raise typer.Exit(2)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, cpu, wall


if __name__ == "__main__":
    typer.run(main)
