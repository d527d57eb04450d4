"""Time the masks of a 3072 x 3072 layer, beside the same mask by a full sort.

Expect (one thread, half a minute): python scripts/bench_masks.py prints medians below 50 ms for
unstructured and n:m masks. Masks per row take what numpy needs to select in 3072 rows, which is
more where AVX-512 stores with compression are slow (AMD's Zen 4). The committed figures were
made with --out site/mask_benchmark.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kb.files import replace_file  # noqa: E402
from methods.harness.masks import NOfM, Pattern, Unstructured, removed  # noqa: E402
from methods.harness.measure import system_info  # noqa: E402

PATTERNS: dict[str, Pattern] = {
    "unstructured, 50 % of the layer": Unstructured(0.5),
    "unstructured, 50 % of every row": Unstructured(0.5, per="row"),
    "2:4": NOfM(2, 4),
    "1:4": NOfM(1, 4),
    "2:8": NOfM(2, 8),
    "8:16": NOfM(8, 16),
}


def by_sorting(scores: Tensor, pattern: Pattern) -> Tensor:
    """The same mask for a matrix, by the shortest program there is: a stable sort."""
    if isinstance(pattern, NOfM):
        rows, count = scores.reshape(-1, pattern.m), pattern.m - pattern.n
    else:
        rows = scores.reshape(1, -1) if pattern.per == "layer" else scores
        count = int(rows.shape[1] * pattern.ratio)
    lowest = rows.argsort(dim=1, stable=True)[:, :count]
    mask = torch.zeros(rows.shape, dtype=torch.bool).scatter_(1, lowest, True)
    return mask.view_as(scores)


def seconds(run: Callable[[], Tensor], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def main(
    size: Annotated[int, typer.Option(min=16, help="Rows and columns of the layer.")] = 3072,
    rounds: Annotated[int, typer.Option(min=3, help="Timed rounds, patterns in turn.")] = 15,
    out: Annotated[Path | None, typer.Option(help="Write the JSON here.")] = None,
) -> None:
    """Print one JSON object; process CPU time of one thread, patterns interleaved."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(size, size, generator=draw).abs()
    times: dict[str, list[float]] = {name: [] for name in PATTERNS}
    sorting = {}
    for name, pattern in PATTERNS.items():  # the first round warms up and checks the answer
        mask = removed(scores, pattern)
        sorting[name] = seconds(lambda p=pattern: by_sorting(scores, p), time.process_time)  # type: ignore[misc]
        if not torch.equal(mask, by_sorting(scores, pattern)):
            raise SystemExit(f"{name}: the mask is not that of a stable sort")
    for _ in range(rounds):
        for name, pattern in PATTERNS.items():
            run = lambda p=pattern: removed(scores, p)  # noqa: E731
            times[name].append(seconds(run, time.process_time))
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "what": "CPU milliseconds of one thread for the mask of one float32 layer",
        "shape": [size, size],
        "rounds": rounds,
        "system": system_info(),
        "masks": {
            name: {
                "median_ms": round(1e3 * statistics.median(values), 2),
                "min_ms": round(1e3 * min(values), 2),
                "max_ms": round(1e3 * max(values), 2),
                "stable_sort_ms": round(1e3 * sorting[name], 2),
            }
            for name, values in times.items()
        },
    }
    text = json.dumps(found, indent=1) + "\n"
    if out is not None:
        replace_file(out, text.encode("utf-8"))
    typer.echo(text, nl=False)


if __name__ == "__main__":
    typer.run(main)
