"""May two reported rows be compared, and what does a paper not report?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kb.schema import CodeStatus, Direction, Measure, Metric, Paper, ReportItem, Result

_SIZE = frozenset(
    {
        Metric.PARAMS,
        Metric.ACTIVE_PARAMS,
        Metric.PARAMS_REMOVED,
        Metric.WEIGHTS_ZERO,
        Metric.MODEL_SIZE,
        Metric.SIZE_SAVED,
    }
)
_COMPUTE = frozenset({Metric.MACS, Metric.MACS_TOTAL, Metric.FLOPS, Metric.COMPUTE_SAVED})
_SPEED = frozenset(
    {
        Metric.LATENCY,
        Metric.LATENCY_SAVED,
        Metric.SPEEDUP,
        Metric.THROUGHPUT,
        Metric.MEMORY,
        Metric.MEMORY_SAVED,
    }
)
# What one sample costs grows with the number of steps, unless the note says "per step".
_PER_SAMPLE = frozenset(
    {
        Metric.LATENCY,
        Metric.LATENCY_SAVED,
        Metric.SPEEDUP,
        Metric.THROUGHPUT,
        Metric.MACS_TOTAL,
        Metric.FLOPS,
    }
)
_COST = frozenset(
    {
        Metric.PRUNING_COST,
        Metric.PRUNING_MEMORY,
        Metric.TRAINING_COST,
        Metric.TRAINING_FRACTION,
    }
)
# Metrics whose note says what was measured: a phone's decoder is not its whole pipeline.
_NAMED_BY_NOTE = frozenset(
    {Metric.QUALITY_DROP, Metric.LATENCY, Metric.LATENCY_SAVED, Metric.SPEEDUP, Metric.MACS}
)
_FRECHET = frozenset({Metric.FID, Metric.SFID, Metric.FVD, Metric.FAD, Metric.FID_CHANGE})


@dataclass(frozen=True, slots=True)
class Comparability:
    """The answer to "may these two rows be compared?"."""

    ok: bool
    differing: tuple[str, ...]
    """Fields that bear on the metric and have different values."""
    unstated: tuple[str, ...]
    """Fields that bear on the metric and that at least one row leaves open."""
    caveats: tuple[str, ...]
    """Fields that do not forbid it but change its meaning: sparsity, retraining, steps."""


def settings(row: Result) -> dict[str, object]:
    """The fields of a row that decide with what it can be compared; None where not stated."""
    protocol = row.protocol
    return {
        "base_model": row.base_model,
        "dataset": row.dataset,
        "resolution": row.resolution,
        "sampler": protocol.sampler,
        "steps": protocol.steps,
        "guidance": protocol.guidance,
        "samples": protocol.samples,
        "reference_set": protocol.reference_set,
        "fid_implementation": protocol.fid_implementation,
        "hardware": row.hardware,
        "precision": row.precision,
        "batch": protocol.batch,
    }


def needed(metric: Metric) -> tuple[str, ...]:
    """The settings that must agree before two values of `metric` can be compared."""
    if metric in _SIZE:
        return ("base_model",)
    if metric in _COMPUTE:
        return ("base_model", "resolution")
    if metric in _SPEED:
        return ("base_model", "resolution", "hardware", "precision", "batch")
    if metric in _COST:
        return ("base_model", "hardware")
    if metric is Metric.STEPS:
        return ("base_model", "sampler")
    quality = ("base_model", "dataset", "resolution", "sampler", "steps", "guidance", "samples")
    if metric in _FRECHET:
        return (*quality, "reference_set", "fid_implementation")
    return quality


def _same_table(a: Result, b: Result) -> bool:
    x, y = a.source, b.source
    return x.document == y.document and x.place == y.place and x.via == y.via


def comparable(a: Result, b: Result, metric: Metric | None = None) -> Comparability:
    """May `a` and `b` be compared in `metric`, or in every metric they share?

    What neither row states is taken as equal only inside one table of one document, where the
    authors put the rows side by side; anywhere else it stands in the way.
    """
    both = [m for m in shared(a, b) if metric in (None, m)]
    caveats = _caveats(a, b, both)
    if not both:
        return Comparability(False, ("measures",), (), caveats)
    fields = list(dict.fromkeys(name for m in both for name in needed(m)))
    left, right = settings(a), settings(b)
    differing = [f for f in fields if None not in (left[f], right[f]) and left[f] != right[f]]
    differing += [
        f"{m.value} note" for m in both if m in _NAMED_BY_NOTE and _note(a, m) != _note(b, m)
    ]
    open_fields = [f for f in fields if left[f] is None or right[f] is None]
    unstated = [f for f in open_fields if left[f] != right[f]] if _same_table(a, b) else open_fields
    return Comparability(not differing and not unstated, tuple(differing), tuple(unstated), caveats)


def shared(a: Result, b: Result) -> tuple[Metric, ...]:
    """The metrics that both rows have, in the order of the first."""
    theirs = {m.metric for m in b.measures}
    return tuple(dict.fromkeys(m.metric for m in a.measures if m.metric in theirs))


def _caveats(a: Result, b: Result, metrics: Sequence[Metric]) -> tuple[str, ...]:
    names = []
    if (a.sparsity.kind, a.sparsity.value, a.sparsity.pattern) != (
        b.sparsity.kind,
        b.sparsity.value,
        b.sparsity.pattern,
    ):
        names.append("sparsity")
    if a.protocol.retraining != b.protocol.retraining:
        names.append("retraining")
    # Fewer steps may be the technique itself, so they do not forbid a comparison of times.
    if a.protocol.steps != b.protocol.steps and any(m in _PER_SAMPLE for m in metrics):
        names.append("steps")
    return tuple(names)


def measure(row: Result, metric: Metric) -> Measure | None:
    """The first measure of `metric` in a row."""
    return next((m for m in row.measures if m.metric is metric), None)


def _note(row: Result, metric: Metric) -> str | None:
    found = measure(row, metric)
    return found.note if found else None


def ranked(rows: Iterable[Result], metric: Metric) -> tuple[tuple[Result, ...], ...]:
    """Groups of mutually comparable rows, each from best to worst; nothing ranks across groups.

    Raises:
        ValueError: for a metric without a better direction.
    """
    if metric.direction is Direction.NEITHER:
        raise ValueError(f"{metric.value} is no grade and cannot rank")
    groups: list[list[tuple[float, Result]]] = []
    for row in rows:
        found = measure(row, metric)
        if found is None:
            continue
        scored = (found.canonical, row)
        for group in groups:
            if all(comparable(row, other, metric).ok for _, other in group):
                group.append(scored)
                break
        else:
            groups.append([scored])
    sign = 1 if metric.direction is Direction.LOWER else -1
    return tuple(
        tuple(row for _, row in sorted(group, key=lambda pair: sign * pair[0])) for group in groups
    )


class Reporting(StrEnum):
    """What is known about whether a paper reports something."""

    REPORTED = "reported"
    NOT_REPORTED = "not-reported"
    NOT_TRANSCRIBED = "not-transcribed"


def reporting(paper: Paper) -> Mapping[ReportItem, Reporting]:
    """For each item a reader would ask for: reported, read for and missing, or not looked up.

    Only what a curator recorded in `not_reported` counts as missing from the paper; an item that no
    row carries is merely not transcribed.
    """
    own = [row for row in paper.results if row.of is None]
    metrics = {m.metric for row in own for m in row.measures}
    present = {
        ReportItem.LATENCY: bool(metrics & {Metric.LATENCY, Metric.THROUGHPUT}),
        ReportItem.MEMORY: bool(metrics & {Metric.MEMORY, Metric.PRUNING_MEMORY}),
        ReportItem.SEEDS: any(
            (row.protocol.seeds or 0) > 1 or any(m.spread is not None for m in row.measures)
            for row in own
        ),
        ReportItem.FID_SAMPLES: any(
            row.protocol.samples is not None and measure(row, Metric.FID) for row in own
        ),
        ReportItem.CODE: any(
            c.status in (CodeStatus.RELEASED, CodeStatus.PARTIAL, CodeStatus.WEIGHTS_ONLY)
            for c in paper.code
        ),
    }
    missing = set(paper.not_reported)
    if paper.code and not present[ReportItem.CODE]:
        looked_at = {CodeStatus.NONE_FOUND, CodeStatus.STUB, CodeStatus.EMPTY, CodeStatus.GONE}
        if all(c.status in looked_at for c in paper.code):
            missing.add(ReportItem.CODE)
    return {
        item: Reporting.REPORTED
        if present[item]
        else Reporting.NOT_REPORTED
        if item in missing
        else Reporting.NOT_TRANSCRIBED
        for item in ReportItem
    }
