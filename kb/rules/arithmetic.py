"""Numbers of one row, or of one table, that contradict each other.

Printed numbers are rounded. Each stands for the interval of all values that print as it does;
zeros at the end may come of rounding too, so 50 stands for 45 to 55 and 46 for 45.5 to 46.5. Two
numbers contradict each other when no values within their intervals agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from kb.load import Corpus, FieldPath
from kb.rules.registry import Finding, measures, rows, rule
from kb.schema import Bound, Measure, Metric, Paper, Result, RowRole, RowStatus, SparsityKind


@dataclass(frozen=True, slots=True)
class Interval:
    """All values from `low` to `high`."""

    low: float
    high: float

    def meets(self, other: Interval) -> bool:
        """Whether some value lies in both, but for errors of floating point."""
        return self.low <= other.high + 1e-9 and other.low <= self.high + 1e-9


@lru_cache(maxsize=65536)
def printed(value: float) -> Interval:
    """The values that print as `value`, after rounding to its last digit that is not zero."""
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent
    half = 0.5 * 10.0 ** (exponent if isinstance(exponent, int) else 0)
    return Interval(value - half, value + half)


def _removed(measure: Measure) -> Interval | None:
    """Fraction by which a measure fell from its dense value."""
    if measure.dense is None:
        return None
    value, dense = printed(measure.value), printed(measure.dense)
    if dense.low <= 0:
        return None
    return Interval(1 - value.high / dense.low, 1 - value.low / dense.high)


def _percent(measure: Measure) -> Interval:
    value = printed(measure.value)
    return Interval(value.low / 100, value.high / 100)


def _from_speedup(measure: Measure) -> Interval | None:
    value = printed(measure.value)
    return Interval(1 - 1 / value.low, 1 - 1 / value.high) if value.low > 0 else None


def _is_crowded(row: Result) -> bool:
    # No table has rows this long; comparing all pairs of such a row would take for ever.
    return len(row.measures) > 100


def _is_exact(measure: Measure) -> bool:
    return measure.bound is Bound.EXACT and measure.upper is None


def _exact(row: Result, metrics: tuple[Metric, ...]) -> Iterator[tuple[int, Measure]]:
    for index, measure in enumerate(row.measures):
        if measure.metric in metrics and _is_exact(measure):
            yield index, measure


@dataclass(frozen=True, slots=True)
class _Quantity:
    """Ways in which a row can say how much of one thing was saved."""

    counts: tuple[Metric, ...]
    """Measures that fall from their dense value."""
    saved: tuple[Metric, ...]
    """Percentages saved, or speed-ups."""
    kind: SparsityKind | None = None
    """The kind of sparsity that speaks of the same thing."""


def _contradictions(corpus: Corpus, quantity: _Quantity) -> Iterator[Finding]:
    found = {id(n.row): n for n in measures(corpus, *quantity.counts) if n.measure.dense}
    for entry, place, row, _ in found.values():
        # The note of a disputed row explains the contradiction.
        if row.status is RowStatus.DISPUTED or row.role is RowRole.DENSE or _is_crowded(row):
            continue
        path = place[:2]
        counted = [
            (m, interval)
            for _, m in _exact(row, quantity.counts)
            if (interval := _removed(m)) is not None
        ]
        for where, what, interval, note in _stated(row, quantity):
            rivals = [(m, i) for m, i in counted if m.note == note]
            if rivals and not any(interval.meets(i) for _, i in rivals):
                m, i = rivals[0]
                share = f"{(i.low + i.high) / 2:.1%}"
                yield Finding(
                    entry,
                    (*path, *where),
                    f"{what}, but {m.metric.value} of {m.value} instead of {m.dense} is {share}"
                    " less",
                    "check the digits, or write status: disputed with a note if the source errs",
                )


def _stated(
    row: Result, quantity: _Quantity
) -> Iterator[tuple[FieldPath, str, Interval, str | None]]:
    """What a row says was saved: where, in words, how much, and the note it belongs to."""
    sparsity = row.sparsity
    if sparsity.kind is quantity.kind and sparsity.value is not None and sparsity.scope is None:
        fraction = printed(sparsity.value)
        yield ("sparsity", "value"), f"a fraction of {sparsity.value}", fraction, None
    for index, measure in _exact(row, quantity.saved):
        words = f"{measure.metric.value} of {measure.value}"
        is_speedup = measure.metric is Metric.SPEEDUP
        interval = _from_speedup(measure) if is_speedup else _percent(measure)
        if interval is not None:
            yield ("measures", index, "value"), words, interval, measure.note


@rule("arithmetic-params", "error", "Parameters before and after give the fraction removed.")
def arithmetic_params(corpus: Corpus) -> Iterator[Finding]:
    counts, saved = (Metric.PARAMS,), (Metric.PARAMS_REMOVED,)
    yield from _contradictions(corpus, _Quantity(counts, saved, SparsityKind.PARAMS))


@rule("arithmetic-macs", "error", "Operations before and after give the fraction saved.")
def arithmetic_macs(corpus: Corpus) -> Iterator[Finding]:
    counts = (Metric.MACS, Metric.MACS_TOTAL, Metric.FLOPS)
    saved = (Metric.COMPUTE_SAVED,)
    yield from _contradictions(corpus, _Quantity(counts, saved, SparsityKind.MACS))


@rule("arithmetic-time", "error", "Speed-up times latency is the dense latency.")
def arithmetic_time(corpus: Corpus) -> Iterator[Finding]:
    saved = (Metric.SPEEDUP, Metric.LATENCY_SAVED)
    yield from _contradictions(corpus, _Quantity((Metric.LATENCY,), saved))


@rule("arithmetic-memory", "error", "Memory and size before and after give the share saved.")
def arithmetic_memory(corpus: Corpus) -> Iterator[Finding]:
    for count, saved in (
        (Metric.MEMORY, Metric.MEMORY_SAVED),
        (Metric.MODEL_SIZE, Metric.SIZE_SAVED),
    ):
        yield from _contradictions(corpus, _Quantity((count,), (saved,)))


@rule("arithmetic-steps", "error", "Steps before and after give the fraction of steps saved.")
def arithmetic_steps(corpus: Corpus) -> Iterator[Finding]:
    counts = (Metric.STEPS,)
    yield from _contradictions(corpus, _Quantity(counts, (), SparsityKind.STEPS))


@rule("arithmetic-saved", "error", "Two shares saved of one thing are one share.")
def arithmetic_saved(corpus: Corpus) -> Iterator[Finding]:
    pairs = (
        (SparsityKind.PARAMS, Metric.PARAMS_REMOVED),
        (SparsityKind.MACS, Metric.COMPUTE_SAVED),
    )
    for entry, path, row in rows(corpus):
        sparsity = row.sparsity
        if sparsity.value is None or sparsity.scope is not None:
            continue
        if row.status is RowStatus.DISPUTED or row.note is not None:
            continue
        for kind, metric in pairs:
            for index, measure in _exact(row, (metric,)) if sparsity.kind is kind else ():
                if measure.note is None and not printed(sparsity.value).meets(_percent(measure)):
                    yield Finding(
                        entry,
                        (*path, "measures", index, "value"),
                        f"{measure.value} %, but sparsity says {sparsity.value}",
                        "check the digits, or give the sparsity the kind it has",
                    )


@rule("arithmetic-fid", "error", "FID change is FID minus the dense FID.")
def arithmetic_fid(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row, change in measures(corpus, Metric.FID_CHANGE):
        if row.status is RowStatus.DISPUTED or not _is_exact(change) or _is_crowded(row):
            continue
        for _, fid in _exact(row, (Metric.FID,)):
            if fid.dense is None or fid.note != change.note:
                continue
            value, dense = printed(fid.value), printed(fid.dense)
            difference = Interval(value.low - dense.high, value.high - dense.low)
            if not difference.meets(printed(change.value)):
                yield Finding(
                    entry,
                    (*path, "value"),
                    f"{change.value}, but FID goes from {fid.dense} to {fid.value}",
                    "check sign and digits; a rise is positive",
                )


@rule("steps-protocol", "error", "The steps that are measured are the steps that are taken.")
def steps_protocol(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row, measure in measures(corpus, Metric.STEPS):
        taken = row.protocol.steps
        if taken not in (None, measure.value) and measure.note is None and _is_exact(measure):
            yield Finding(
                entry,
                (*path, "value"),
                f"{measure.value:g} steps, but protocol.steps is {taken}",
                "correct one of them",
            )


def _table(row: Result) -> tuple[object, ...]:
    source, protocol = row.source, row.protocol
    return (
        source.document,
        source.place,
        row.base_model,
        row.dataset,
        row.resolution,
        row.hardware,
        protocol.sampler,
        protocol.steps,
        protocol.guidance,
        protocol.samples,
        protocol.batch,
        protocol.reference_set,
        protocol.fid_implementation,
    )


def _disagreements(record: Paper) -> Iterator[tuple[FieldPath, float, float, str]]:
    """Rows whose dense value is not that of the dense row of the same table."""
    dense: dict[object, tuple[dict[str, float], str]] = {}
    for row in record.results:
        if row.role is RowRole.DENSE:
            for measure in row.measures:
                key = (_table(row), measure.metric, measure.note)
                values = dense.setdefault(key, ({}, row.id))[0]
                values[f"{measure.canonical:.6g}"] = measure.canonical
    if not dense:
        return
    for index, row in enumerate(record.results):
        if row.role is RowRole.DENSE or row.status is RowStatus.DISPUTED:
            continue
        table = None
        for place, measure in enumerate(row.measures):
            value = measure.canonical_dense
            if value is None or measure.dense is None:
                continue
            table = table or _table(row)
            known = dense.get((table, measure.metric, measure.note))
            if known is None:
                continue
            values, row_id = known
            if f"{value:.6g}" not in values:
                path: FieldPath = ("results", index, "measures", place, "dense")
                yield path, measure.dense, next(iter(values.values())), row_id


@rule("dense-disagrees", "error", "One table has one dense model, and it has one value.")
def dense_disagrees(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        for path, stated, known, row_id in _disagreements(entry.record):
            yield Finding(
                entry,
                path,
                f"dense is {stated}, but row {row_id} of the same table says {known:g}",
                "correct one of them, or tell the two settings apart in protocol",
            )
