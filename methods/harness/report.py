"""Pictures and the page of a comparison, drawn from the table that `kb.results` makes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor

from kb import results
from kb.cards import RECONSTRUCTION

from .journal import write_bytes
from .sample import to_uint8

Table = results.Table

# Okabe and Ito's colours, told apart with any colour vision; markers say the same once more.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK = "#222222"
_SIDE = 84  # least screen pixels of a sample's height: three lines of caption beside it
_WIDE = 4  # most over least distance from which on a logarithmic axis keeps the near ones apart
_DODGE = 0.9  # per cent of MACs between the points of two methods of one size


def draw_pareto(table: Table, path: Path) -> None:
    """Fréchet distance against MACs left, without and with retraining, dense as a line."""
    with matplotlib.rc_context({"font.size": 10, "font.family": "DejaVu Sans"}):
        write_bytes(path, _png(_pareto(table)))


def _pareto(table: Table) -> Figure:
    pruned = [row for row in table["rows"] if row["method"] != "dense"]
    dense = next((row for row in table["rows"] if row["method"] == "dense"), None)
    retrained = {row["optimizer_steps"] for row in pruned} - {0}
    budgets = sorted({bool(row["optimizer_steps"]) for row in pruned}) or [False]
    series = _series(pruned)
    figure = Figure(figsize=(1.2 + 4.1 * len(budgets), 4.6), dpi=130, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(budgets), sharey=True, squeeze=True))
    for axes, budget in zip(panels, budgets, strict=True):
        rows = [row for row in pruned if bool(row["optimizer_steps"]) == budget]
        _panel(axes, rows, series, dense)
        title = f"{_range(retrained)} optimizer steps of retraining" if budget else "no retraining"
        axes.set_title(title, fontsize=10, color=_INK)
        axes.set_xlabel("MACs left, % of dense (equal sizes drawn side by side)")
    values = [r["frechet"]["mean"] for r in table["rows"]]
    if min(values) > 0 and max(values) / min(values) > _WIDE:
        panels[0].set_yscale("log")
        for axes in panels:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.yaxis.set_minor_formatter(_sparse_minor(max(values) / min(values)))
    panels[0].set_ylabel("Fréchet distance to real images (lower is better)")
    handles, labels = panels[0].get_legend_handles_labels()
    for axes in panels[1:]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(_title(table), fontsize=11, color=_INK)
    return figure


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}–{high}"


def _sparse_minor(ratio: float) -> Any:
    """Name as many digits between powers of ten as there is room for."""
    if ratio > 300:
        return NullFormatter()
    named = "25" if ratio > 10 else "2357"

    def name(value: float, _: Any) -> str:
        first = f"{value:e}"[0]
        return f"{value:g}" if first in named else ""

    return FuncFormatter(name)


def _series(rows: Sequence[Table]) -> dict[str, str]:
    """Recipe -> legend: the method, with those settings that tell its recipes apart."""
    words = {row["recipe"]: row["recipe"].split() for row in rows}
    legend = {}
    for recipe, (method, *settings) in words.items():
        siblings = [set(other[1:]) for other in words.values() if other[0] == method]
        shared = set.intersection(*siblings)
        shared.discard(RECONSTRUCTION)  # what a method is says every legend
        legend[recipe] = " ".join([method, *(word for word in settings if word not in shared)])
    return legend


def _panel(
    axes: Any, rows: Sequence[Table], series: Mapping[str, str], dense: Table | None
) -> None:
    if dense is not None:
        axes.axhline(
            dense["frechet"]["mean"], color=_INK, linewidth=1, linestyle="--", label="dense (100 %)"
        )
    aside = _dodged(rows)
    for index, recipe in enumerate(sorted(series, key=series.__getitem__)):
        points = sorted(
            (row for row in rows if row["recipe"] == recipe), key=lambda row: row["macs_fraction"]
        )
        if not points:
            continue
        mean = np.array([row["frechet"]["mean"] for row in points])
        low = np.array([row["frechet"]["min"] for row in points])
        high = np.array([row["frechet"]["max"] for row in points])
        repeated = any(row["frechet"]["n"] > 1 for row in points)
        again = index // len(_COLOURS)  # colours come round: then markers are hollow and others
        colour = _COLOURS[index % len(_COLOURS)]
        axes.errorbar(
            [100 * row["macs_fraction"] + aside[row["slug"]] for row in points],
            mean,
            yerr=[mean - low, high - mean] if repeated else None,
            color=colour,
            marker=_MARKERS[(index + 3 * again) % len(_MARKERS)],
            markersize=7,
            markerfacecolor="white" if again else colour,
            markeredgecolor=colour if again else "white",
            markeredgewidth=1.4,
            linewidth=1.3,
            linestyle="-" if not again else "--",
            capsize=3,
            label=series[recipe],
        )
    axes.margins(x=0.08)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _dodged(rows: Sequence[Table]) -> dict[str, float]:
    """By slug, how far aside a point goes so that those of one size stand side by side."""
    sizes: list[list[Table]] = []
    for row in sorted(rows, key=lambda row: row["macs_fraction"]):
        if sizes and row["macs_fraction"] - sizes[-1][0]["macs_fraction"] <= results.SAME_SIZE / 2:
            sizes[-1].append(row)
        else:
            sizes.append([row])
    return {
        row["slug"]: (place - (len(alike) - 1) / 2) * _DODGE
        for alike in sizes
        for place, row in enumerate(sorted(alike, key=lambda row: row["recipe"]))
    }


def _title(table: Table) -> str:
    repeats = {len(row["seeds"]) for row in table["rows"]}
    seeds = f"{_range(repeats)} seed{'s' if max(repeats) > 1 else ''} a row"
    bars = ", bars from least to most" if max(repeats) > 1 else ""
    return f"{table['task']}: {table['protocol'].get('samples')} samples, {seeds}{bars}"


def draw_samples(rows: Sequence[tuple[Table, Tensor]], path: Path) -> None:
    """One line of images a row of the table; a column starts from the same noise everywhere."""
    with matplotlib.rc_context({"font.size": 9, "font.family": "DejaVu Sans"}):
        write_bytes(path, _png(_samples(rows)))


def draw_committed(table: Table, images: Mapping[str, Tensor], folder: Path) -> Iterator[Path]:
    """Draw a task's pictures into its folder of results and yield each: the Pareto plot, the
    deepest row of every method, and every row of each method beside the dense model's.

    `images` maps the slugs of the table to images (N, C, H, W). Without those of all rows only the
    plot is drawn, since a grid that leaves rows out would look whole.
    """
    draw_pareto(table, folder / "pareto.png")
    yield folder / "pareto.png"
    if any(row["slug"] not in images for row in table["rows"]):
        return

    def draw(rows: Sequence[Table], path: Path) -> Path:
        draw_samples([(row, images[row["slug"]]) for row in rows], path)
        return path

    yield draw(results.headline(table), folder / "samples.png")
    named = {part.split("-")[0] for row in table["rows"] for part in row["slug"].split("+")}
    for name in sorted(named - {"dense", "finetune"}):
        own = results.dense_first(table, results.rows_of(name, table))
        yield draw(own, folder / "samples" / f"{name}.png")


def _samples(rows: Sequence[tuple[Table, Tensor]]) -> Figure:
    if not rows:
        figure = Figure(figsize=(6, 1), dpi=130)
        figure.text(0.5, 0.5, "no images were kept", ha="center", va="center")
        return figure
    count = max(len(images) for _, images in rows)
    height, width = rows[0][1].shape[-2:]
    scale = max(1, -(-_SIDE // height))
    dpi, label, gap = 130, 230, 4
    line = height * scale + gap
    size = (label + count * (width * scale + gap), len(rows) * line + 30)
    figure = Figure(figsize=(size[0] / dpi, size[1] / dpi), dpi=dpi)
    figure.patch.set_facecolor("white")
    figure.text(
        label / size[0], 1 - 15 / size[1], "every column starts from the same noise", va="center"
    )
    for index, (row, images) in enumerate(rows):
        top = size[1] - 30 - index * line
        figure.text(8 / size[0], (top - line / 2) / size[1], _caption(row), va="center")
        for column, image in enumerate(to_uint8(images)):
            left = label + column * (width * scale + gap)
            bottom = top - gap / 2 - height * scale
            axes = figure.add_axes(
                (
                    left / size[0],
                    bottom / size[1],
                    width * scale / size[0],
                    height * scale / size[1],
                )
            )
            grey = image.shape[-1] == 1
            axes.imshow(
                image[..., 0] if grey else image,
                cmap="gray" if grey else None,
                vmin=0,
                vmax=255,
                interpolation="nearest",
            )
            axes.set_axis_off()
    return figure


def _caption(row: Table) -> str:
    if row["method"] == "dense":
        return f"dense\nFréchet {row['frechet']['mean']:.0f}"
    retrained = f"{row['optimizer_steps']} steps" if row["optimizer_steps"] else "no retraining"
    name = results.labelled(row["method"]).replace(f" {RECONSTRUCTION}", f"\n{RECONSTRUCTION}")
    return (
        f"{name}\n{100 * row['macs_fraction']:.0f} % MACs, {retrained}\n"
        f"Fréchet {row['frechet']['mean']:.0f}"
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No software version or date inside: equal tables give equal files.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


# --- page ------------------------------------------------------------------------------------


def page(
    table: Table,
    *,
    committed: Table | None = None,
    failures: Sequence[tuple[str, int, str]] = (),
    pareto: bytes,
    samples: bytes,
) -> str:
    """One self-contained HTML page; every text is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    sections = [_section(table, "measured now", "Measured now")]
    if committed is not None:
        sections.append(_section(committed, "committed result", "Committed results"))
    return environment.from_string(_PAGE).render(
        table=table,
        sections=sections,
        failures=failures,
        pareto=base64.b64encode(pareto).decode(),
        samples=base64.b64encode(samples).decode(),
    )


def _section(table: Table, source: str, title: str) -> dict[str, Any]:
    return {
        "title": title,
        "source": source,
        "columns": table["columns"],
        "rows": [results.cells(row) for row in table["rows"]],
        "protocol": results.protocol_line(table["protocol"]),
        "notes": table["notes"],
        "claims": [results.claim(p) for p in table["comparisons"] if p["better"] != "tie"],
        "ties": [results.claim(p) for p in table["comparisons"] if p["better"] == "tie"],
    }


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Pruning methods compared on {{ table.task }}</title>
<style>
:root { --ink: #1d1f23; --paper: #ffffff; --soft: #5b616b; --line: #d8dce2; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ec; --paper: #16181c; --soft: #a3a9b3; --line: #363b44; --band: #1e2127; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
p, li { max-width: 48rem; }
.soft { color: var(--soft); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .65rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { position: sticky; top: 0; background: var(--band); border-bottom: 1px solid var(--line);
  font-weight: 600; }
tbody tr:nth-child(even) { background: var(--band); }
.tag { font-size: .75rem; color: var(--soft); }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
.wide img { max-width: none; }
@media (min-width: 64rem) { .wide img { max-width: 100%; } }
ul { padding-left: 1.2rem; }
summary { cursor: pointer; }
code { font-size: .85em; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>Pruning methods compared on {{ table.task }}</h1>
<p class="soft">Base {{ table.base.name }}: {{ "%.2f"|format(table.base.params / 1e6) }} M
parameters, {{ "%.1f"|format(table.base.macs / 1e6) }} MMACs (convolution and linear),
{{ "%.1f"|format(table.base.macs_with_attention / 1e6) }} MMACs with attention products.
Weights <code>{{ table.base.sha256[:12] }}</code>.</p>
{% if failures %}
<h2>Not measured</h2>
<ul>{% for recipe, seed, reason in failures %}
<li><code>{{ recipe }}</code>, seed {{ seed }}: {{ reason }}</li>{% endfor %}
</ul>
{% endif %}
<h2>Quality against compute</h2>
<figure><img alt="Fréchet distance against MACs left, by method"
 src="data:image/png;base64,{{ pareto }}"></figure>
<h2>Images</h2>
<figure class="scroll wide"><img alt="Sample images of every row, one noise a column"
 src="data:image/png;base64,{{ samples }}"></figure>
{% for section in sections %}
<h2>{{ section.title }}</h2>
<p class="soft">{{ section.protocol }}.</p>
<div class="scroll" tabindex="0" role="region" aria-label="{{ section.title }}">
<table>
<thead><tr>{% for column in section.columns %}
<th scope="col" title="{{ column.meaning }}">{{ column.label }}</th>{% endfor %}
<th scope="col">source</th></tr></thead>
<tbody>{% for row in section.rows %}
<tr>{% for column in section.columns %}<td>{{ row[column.key] }}</td>{% endfor %}
<td class="tag">{{ section.source }}</td></tr>{% endfor %}
</tbody>
</table>
</div>
<ul class="soft">{% for note in section.notes %}
<li>{{ note }}</li>{% endfor %}
</ul>
{% if section.claims %}
<p>Order that the seeds support:</p>
<ul>{% for claim in section.claims %}
<li>{{ claim }}</li>{% endfor %}
</ul>
{% endif %}
{% if section.ties %}
<details><summary>{{ section.ties|length }} paired comparisons without an order</summary>
<ul>{% for tie in section.ties %}
<li>{{ tie }}</li>{% endfor %}
</ul>
</details>
{% endif %}
{% endfor %}
<h2>What the columns mean</h2>
<ul class="soft">{% for column in table.columns %}
<li><b>{{ column.label }}</b>: {{ column.meaning }}</li>{% endfor %}
</ul>
</body>
</html>
"""
