"""May two reported rows be compared? Answers for every number that they share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb.ledger import comparable, measure, settings, shared  # noqa: E402
from kb.load import Unreadable, load_literature  # noqa: E402
from kb.schema import Literature, Metric, Result  # noqa: E402


def stop(message: str) -> NoReturn:
    """Say on one line what is unusable, and leave."""
    typer.echo(f"comparable: {message}", err=True)
    raise typer.Exit(2)


def find(literature: Literature, name: str) -> Result:
    """The row that `entry/row` names; leaves with the valid choices when there is none."""
    entry, _, row = name.partition("/")
    paper = next((p for p in literature.papers if p.id == entry), None)
    if paper is None:
        stop(f"{name}: no entry has the id {entry!r}; write ENTRY/ROW")
    found = next((r for r in paper.results if r.id == row), None)
    if found is None:
        rows = ", ".join(r.id for r in paper.results) or "none"
        stop(f"{name}: {entry} has no row {row!r}; its rows: {rows}")
    return found


def answer(a: Result, b: Result, metric: Metric) -> dict[str, Any]:
    """The answer for one metric, with both values as they are printed and both settings."""
    found = comparable(a, b, metric)
    left, right = settings(a), settings(b)
    values = [measure(row, metric) for row in (a, b)]
    return {
        "metric": metric.value,
        "ok": found.ok,
        "values": [m.canonical if m else None for m in values],
        "unit": metric.unit,
        "differing": {name: [left.get(name), right.get(name)] for name in found.differing},
        "unstated": list(found.unstated),
        "caveats": list(found.caveats),
    }


def sentence(found: dict[str, Any]) -> str:
    """The answer on one line."""
    unit = "" if found["unit"] == "1" else f" {found['unit']}"
    first, second = (f"{value:.6g}{unit}" for value in found["values"])
    reasons = []
    for name, (left, right) in found["differing"].items():
        reasons.append(f"{name} differs" + (f" ({left!r}, {right!r})" if left != right else ""))
    if found["unstated"]:
        reasons.append(f"not stated by both: {', '.join(found['unstated'])}")
    line = f"{found['metric']} {first} and {second}: {'yes' if found['ok'] else 'no'}"
    line += f"; {'; '.join(reasons)}" if reasons else ""
    if found["caveats"]:
        line += f"; mind the difference in {', '.join(found['caveats'])}"
    return line


def main(
    first: Annotated[str, typer.Argument(help="A row: ENTRY/ROW.")],
    second: Annotated[str, typer.Argument(help="Another row.")],
    metric: Annotated[Metric | None, typer.Option(help="Answer for this number alone.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    file: Annotated[Path, typer.Option(help="Literature file.")] = ROOT / "papers.yaml",
) -> None:
    """Exit 0 when every shared number may be compared, 1 when one may not, 2 on unusable input."""
    try:
        literature = load_literature(file)
    except Unreadable as error:
        stop(str(error.problem))
    a, b = find(literature, first), find(literature, second)
    both = shared(a, b)
    if metric is not None and metric not in both:
        stop(f"{metric.value} stands not in both rows; both have: {', '.join(both) or 'nothing'}")
    found = [answer(a, b, m) for m in ([metric] if metric else both)]
    ok = bool(found) and all(one["ok"] for one in found)
    if as_json:
        shown = {"rows": [first, second], "ok": ok, "answers": found}
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    elif not found:
        typer.echo("no: the rows share no number")
    else:
        typer.echo("\n".join(map(sentence, found)))
    if not ok:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
