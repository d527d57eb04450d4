"""Single numbers and rows: range, sign, protocol, status, source."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal

from kb.load import Corpus, Entry, FieldPath
from kb.rules.registry import Finding, Number, measures, numbers, rows, rule
from kb.schema import (
    Evidence,
    Metric,
    Origin,
    Paper,
    ReportItem,
    Result,
    RowRole,
    RowStatus,
    SparsityKind,
)

_OWN = (
    RowRole.PROPOSED,
    RowRole.ABLATION,
)


@rule("duplicate-result", "error", "A row is cited by the id of its entry and its own.")
def duplicate_result(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        seen: set[str] = set()
        for index, row in enumerate(entry.record.results):
            if row.id in seen:
                yield Finding(
                    entry,
                    ("results", index, "id"),
                    f"{row.id} is the id of an earlier row",
                    "give each row its own id",
                )
            seen.add(row.id)


def _same_row(a: Result, b: Result) -> bool:
    aside = {"id": "", "note": None}
    return a.model_copy(update=aside) == b.model_copy(update=aside)


@rule("repeated-row", "error", "Two rows that differ in nothing but the id are one row.")
def repeated_row(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        seen: dict[object, list[Result]] = {}
        for index, row in enumerate(entry.record.results):
            first = row.measures[0]
            same = seen.setdefault((row.variant, row.source.row, first.value, first.dense), [])
            # Tables of hundreds of equal rows are broken in the first few of them already.
            twin = next((other for other in same[:20] if _same_row(row, other)), None)
            if twin is not None:
                yield Finding(
                    entry,
                    ("results", index),
                    f"says the same as row {twin.id}",
                    "remove it, or add what tells the two apart",
                )
            same.append(row)


@rule("repeated-measure", "error", "Two values of one measure in one row contradict each other.")
def repeated_measure(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row in rows(corpus):
        if len(row.measures) == 1:
            continue
        seen: set[tuple[Metric, str | None]] = set()
        for index, measure in enumerate(row.measures):
            key = (measure.metric, measure.note)
            if key in seen:
                yield Finding(
                    entry,
                    (*path, "measures", index),
                    f"{measure.metric.value} stands in this row twice",
                    "say in note: what each value is, or write two rows",
                )
            seen.add(key)


@rule("measure-range", "error", "A value outside the metric's range is a slip of unit or digit.")
def measure_range(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, _, measure in numbers(corpus).measures:
        metric = measure.metric
        factor = metric.units[measure.unit or metric.unit]
        least, most = metric.low, metric.high
        given = (("value", measure.value), ("upper", measure.upper), ("dense", measure.dense))
        for name, number in given:
            if number is None:
                continue
            low = least is not None and number * factor < least
            high = most is not None and number * factor > most
            if low or high:
                bound = f"below {least}" if low else f"above {most}"
                yield Finding(
                    entry,
                    (*path, name),
                    f"{metric.value} of {number} is {bound}, in units of {metric.unit}",
                    f"check value and unit (one of {', '.join(metric.units)})",
                )


_NEVER_ZERO = (
    Metric.PARAMS,
    Metric.ACTIVE_PARAMS,
    Metric.MACS,
    Metric.MACS_TOTAL,
    Metric.FLOPS,
    Metric.MODEL_SIZE,
    Metric.LATENCY,
    Metric.SPEEDUP,
    Metric.THROUGHPUT,
    Metric.MEMORY,
    Metric.PRUNING_MEMORY,
)


@rule("measure-zero", "error", "A model that takes no time and no space is an empty cell.")
def measure_zero(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, _, measure in measures(corpus, *_NEVER_ZERO):
        for name in ("value", "dense"):
            if getattr(measure, name) == 0:
                yield Finding(
                    entry,
                    (*path, name),
                    f"{measure.metric.value} of 0",
                    "give the number, or leave the measure out",
                )


_LONGEST_PRINTED = 12  # digits; a float that was computed carries sixteen or seventeen


def _digits(value: float) -> tuple[int, ...]:
    return Decimal(repr(value)).normalize().as_tuple().digits


@rule("number-tail", "error", "Nobody prints sixteen digits; the tail comes from a computation.")
def number_tail(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, _, measure in numbers(corpus).measures:
        for name in ("value", "upper", "dense", "spread"):
            value = getattr(measure, name)
            # Only the first question is asked of all numbers; the second tells digits from zeros.
            if len(repr(value)) > _LONGEST_PRINTED and len(_digits(value)) > _LONGEST_PRINTED:
                yield Finding(
                    entry,
                    (*path, name),
                    f"{value!r} has more digits than any source prints",
                    f"write {value:.{_LONGEST_PRINTED}g}, or what the source prints",
                )


# Far outside what any diffusion model of these years needs, in canonical units.
_PLAUSIBLE: Mapping[Metric, tuple[float, float]] = {
    Metric.PARAMS: (0.001, 200_000),
    Metric.ACTIVE_PARAMS: (0.001, 200_000),
    Metric.MACS: (0.0001, 10_000_000),
    Metric.MACS_TOTAL: (0.00001, 100_000_000),
    Metric.LATENCY: (0.001, 86_400_000),
    Metric.SPEEDUP: (0.02, 1000),
    Metric.MEMORY: (0.01, 2_000_000),
    Metric.MODEL_SIZE: (0.001, 1_000_000),
}


@rule("measure-magnitude", "warning", "A number a thousand times off has the wrong unit.")
def measure_magnitude(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, _, measure in measures(corpus, *_PLAUSIBLE):
        low, high = _PLAUSIBLE[measure.metric]
        if measure.value != 0 and not low <= measure.canonical <= high:
            yield Finding(
                entry,
                (*path, "value"),
                f"{measure.metric.value} of {measure.value} {measure.unit or measure.metric.unit}"
                " is hard to believe",
                "check the unit against the source",
            )


@rule("measure-growth", "warning", "A compressed model is not larger than the dense one.")
def measure_growth(corpus: Corpus) -> Iterator[Finding]:
    sizes = (Metric.PARAMS, Metric.MACS, Metric.MACS_TOTAL, Metric.FLOPS, Metric.MODEL_SIZE)
    for entry, path, row, measure in measures(corpus, *sizes):
        grows = measure.dense is not None and measure.value > measure.dense
        explained = row.note is not None or measure.note is not None
        if grows and row.role in _OWN and not explained:
            yield Finding(
                entry,
                path,
                f"{measure.metric.value} grows from {measure.dense} to {measure.value}",
                "exchange value and dense, or say why in note",
            )


@rule("dense-sparsity", "error", "The dense model is the one from which nothing was removed.")
def dense_sparsity(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row in rows(corpus):
        if row.role is RowRole.DENSE and row.sparsity.kind is not SparsityKind.NONE:
            yield Finding(
                entry,
                (*path, "sparsity"),
                "a dense row has a sparsity",
                "write sparsity: {kind: none}, or another role",
            )


@rule("dense-dense", "error", "A dense row is its own baseline; a second value is confusion.")
def dense_dense(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row, measure in numbers(corpus).measures:
        if row.role is RowRole.DENSE and measure.dense not in (None, measure.value):
            yield Finding(
                entry,
                (*path, "dense"),
                "the dense row has another dense value",
                "remove dense, or choose another role",
            )


@rule(
    "sparsity-value", "error", "A kind says of what the value is a fraction; one needs the other."
)
def sparsity_value(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row in rows(corpus):
        sparsity = row.sparsity
        stated = sparsity.value is not None or sparsity.pattern is not None
        if sparsity.kind is SparsityKind.NONE and stated:
            message, mend = "kind none with a value", "name the kind, or remove the value"
        elif sparsity.kind not in (SparsityKind.NONE, SparsityKind.UNSTATED) and not stated:
            message, mend = f"kind {sparsity.kind.value} without value", "add it, or kind: unstated"
        else:
            continue
        yield Finding(entry, (*path, "sparsity"), message, mend)


_RATIO_PAIRS: Mapping[SparsityKind, tuple[Metric, ...]] = {
    SparsityKind.PARAMS: (
        Metric.PARAMS,
        Metric.ACTIVE_PARAMS,
    ),
    SparsityKind.MACS: (
        Metric.MACS,
        Metric.MACS_TOTAL,
        Metric.FLOPS,
    ),
    SparsityKind.STEPS: (Metric.STEPS,),
}


@rule("sparsity-unstated", "warning", "The counts say what was removed; only the kind is missing.")
def sparsity_unstated(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row, measure in measures(corpus, Metric.PARAMS):
        if row.sparsity.kind is not SparsityKind.UNSTATED or row.role is RowRole.DENSE:
            continue
        if measure.dense is not None and measure.value < measure.dense:
            yield Finding(
                entry,
                (*path[:2], "sparsity", "kind"),
                "unstated, but the row gives the parameters before and after",
                f"write kind: params, value: {1 - measure.value / measure.dense:.3f}, "
                "origin: derived",
            )


@rule("sparsity-origin", "warning", "A value computed here says from what it was computed.")
def sparsity_origin(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row in rows(corpus):
        if row.sparsity.origin is not Origin.DERIVED or row.note is not None:
            continue
        metrics = _RATIO_PAIRS.get(row.sparsity.kind, ())
        if not any(m.metric in metrics and m.dense is not None for m in row.measures):
            yield Finding(
                entry,
                (*path, "sparsity"),
                "derived, but the row holds neither the numbers nor a note",
                "add the measure with its dense value, or say in note how it was derived",
            )


@rule("sparsity-pattern", "error", "n of m kept weights leave (m - n) / m zero, and n is below m.")
def sparsity_pattern(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row in rows(corpus):
        sparsity = row.sparsity
        if sparsity.pattern is None:
            continue
        kept, group = map(int, sparsity.pattern.split(":"))
        if not 0 < kept < group:
            message = f"{kept} of {group} weights cannot be kept"
        elif (
            sparsity.kind is SparsityKind.TARGETED_LAYERS
            and sparsity.value is not None
            and abs(sparsity.value - (1 - kept / group)) > 0.01
        ):
            message = f"{sparsity.pattern} is {1 - kept / group:.3g}, not {sparsity.value}"
        else:
            continue
        yield Finding(
            entry,
            (*path, "sparsity", "pattern"),
            message,
            "write n kept of every m; code often counts the removed ones",
        )


# --------------------------------------------------------------------------- protocol

_FRECHET = (
    Metric.FID,
    Metric.SFID,
    Metric.FVD,
    Metric.FAD,
)
_NEEDS_DENSE = (*_FRECHET, Metric.KID, Metric.CMMD, Metric.INCEPTION_SCORE, Metric.CLIP_SCORE)


def _read_itself(entry: Entry[Paper], row: Result) -> bool:
    """Whether who transcribed the row had the paper at hand and so could have looked further."""
    read = (Evidence.FULLTEXT, Evidence.FULLTEXT_EXCERPT)
    return row.source.via is None and entry.record.evidence in read


def _count(number: int) -> str:
    return "a row" if number == 1 else f"{number} rows"


@rule("fid-protocol", "warning", "A Fréchet distance depends on samples and steps like on models.")
def fid_protocol(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        if ReportItem.FID_SAMPLES in entry.record.not_reported:
            continue
        bare: list[FieldPath] = [
            ("results", index, "protocol")
            for index, row in enumerate(entry.record.results)
            if row.protocol.samples is None
            and row.protocol.note is None
            and _read_itself(entry, row)
            and any(m.metric in _FRECHET for m in row.measures)
        ]
        if bare:
            yield Finding(
                entry,
                bare[0],
                f"{_count(len(bare))} with a Fréchet distance, but not its number of samples",
                "add protocol.samples, or fid-samples to not_reported",
            )


@rule("speed-hardware", "warning", "Milliseconds and megabytes belong to a device.")
def speed_hardware(corpus: Corpus) -> Iterator[Finding]:
    timed = (Metric.LATENCY, Metric.THROUGHPUT, Metric.MEMORY, Metric.PRUNING_MEMORY)
    for entry in corpus.papers:
        bare: list[FieldPath] = [
            ("results", index)
            for index, row in enumerate(entry.record.results)
            if row.hardware is None
            and row.source.via is None
            and row.note is None
            and any(m.metric in timed for m in row.measures)
        ]
        if bare:
            yield Finding(
                entry,
                bare[0],
                f"{_count(len(bare))} with time or memory, but no device",
                "add hardware, or say in note that the source names none",
            )


@rule("needs-baseline", "warning", "A distance without the dense model's says nothing of pruning.")
def needs_baseline(corpus: Corpus) -> Iterator[Finding]:
    known: set[tuple[str, str, Metric]] = set()
    for entry, _, row, measure in measures(corpus, *_NEEDS_DENSE):
        if measure.dense is not None or row.role is RowRole.DENSE:
            known.add((entry.record.id, row.base_model, measure.metric))
    bare: dict[str, list[Number]] = {}
    for number in measures(corpus, *_NEEDS_DENSE):
        entry, _, row, measure = number
        if row.role not in _OWN or row.source.via is not None or row.note is not None:
            continue
        if (entry.record.id, row.base_model, measure.metric) not in known:
            bare.setdefault(entry.record.id, []).append(number)
    for some in bare.values():
        first = min(some, key=lambda n: corpus.line(n.entry, n.path))
        count = len({n.path[:2] for n in some})
        yield Finding(
            first.entry,
            first.path,
            f"{_count(count)} without the dense model's value",
            "add dense or a dense row, or say in note that the source prints none",
        )


@rule("measure-note", "error", "A relative loss means nothing until its measure is named.")
def measure_note(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, _, measure in measures(corpus, Metric.QUALITY_DROP):
        if measure.note is None:
            yield Finding(
                entry, path, "quality-drop of what?", "name the measure in note: PickScore"
            )


@rule("spread-seeds", "warning", "A spread without the number of runs cannot be judged.")
def spread_seeds(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row, measure in numbers(corpus).measures:
        if measure.spread is not None and row.protocol.seeds is None and measure.note is None:
            yield Finding(
                entry,
                (*path, "spread"),
                "a spread over an unknown number of runs",
                "add protocol.seeds, or say in note what the spread is over",
            )


@rule("seeds-spread", "warning", "Who runs a thing several times has a spread to report.")
def seeds_spread(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row in rows(corpus):
        repeated = (row.protocol.seeds or 0) > 1
        silent = row.note is None and ReportItem.SEEDS not in entry.record.not_reported
        if repeated and silent and all(m.spread is None for m in row.measures):
            yield Finding(
                entry,
                (*path, "protocol", "seeds"),
                f"{row.protocol.seeds} runs without a spread",
                "add spread to the measures, or seeds to not_reported",
            )


@rule("spread-size", "error", "A spread wider than the value is a slip of column.")
def spread_size(corpus: Corpus) -> Iterator[Finding]:
    positive = (*_NEVER_ZERO, *_FRECHET, Metric.CLIP_SCORE, Metric.INCEPTION_SCORE)
    for entry, path, _, measure in numbers(corpus).measures:
        spread = measure.spread
        if spread is not None and spread > abs(measure.value) and measure.metric in positive:
            yield Finding(
                entry,
                (*path, "spread"),
                f"{spread} is more than the value {measure.value}",
                "check which column is which",
            )


# --------------------------------------------------------------------------- status and source

_CHECKED = (
    RowStatus.RECOMPUTED,
    RowStatus.REPRODUCED_IN_PART,
    RowStatus.REPRODUCED,
)


@rule("status-note", "error", "Who recomputed or reproduced a row says under which assumption.")
def status_note(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row in rows(corpus):
        silent = row.note is None and all(m.note is None for m in row.measures)
        if row.status in _CHECKED and silent:
            yield Finding(
                entry,
                (*path, "status"),
                f"{row.status.value} without a note",
                "say in note how, and what was assumed",
            )


@rule("disputed-note", "error", "A dispute names who disagrees and in what.")
def disputed_note(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row in rows(corpus):
        if row.status is RowStatus.DISPUTED and row.note is None:
            yield Finding(
                entry,
                (*path, "status"),
                "disputed without an explanation",
                "say in note what disagrees with the row",
            )


_RECOMPUTABLE = (
    Metric.PARAMS,
    Metric.ACTIVE_PARAMS,
    Metric.PARAMS_REMOVED,
    Metric.MACS,
    Metric.MACS_TOTAL,
    Metric.FLOPS,
    Metric.COMPUTE_SAVED,
    Metric.MODEL_SIZE,
    Metric.SIZE_SAVED,
)


@rule("recomputed-measure", "error", "Only sizes and operations follow from an architecture.")
def recomputed_measure(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row in rows(corpus):
        if row.status is RowStatus.RECOMPUTED and not any(
            m.metric in _RECOMPUTABLE for m in row.measures
        ):
            yield Finding(
                entry,
                (*path, "status"),
                "recomputed, but no measure of the row follows from an architecture",
                "write reported or transcription-checked",
            )


_ARXIV = re.compile(r"arxiv:(\d{4}\.\d{4,5})(?:v(\d+))?")


@rule("source-version", "warning", "Tables change from one version of a paper to the next.")
def source_version(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        bare: list[FieldPath] = []
        for index, row in enumerate(entry.record.results):
            match = _ARXIV.match(row.source.document)
            if match and match[2] is None and row.source.via is None:
                bare.append(("results", index, "source", "document"))
        if bare:
            yield Finding(
                entry,
                bare[0],
                f"{_count(len(bare))} of a paper without version",
                "add the version that was read: v1; or say in via: through what it was read",
            )


@rule("versions-read", "error", "The versions whose tables are quoted were read.")
def versions_read(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row in rows(corpus):
        record = entry.record
        if not record.arxiv_versions or row.source.via is not None:
            continue
        match = _ARXIV.match(row.source.document)
        if match and match[1] == record.arxiv and match[2]:
            version = int(match[2])
            if version not in record.arxiv_versions:
                yield Finding(
                    entry,
                    (*path, "source", "document"),
                    f"version {version} is not among arxiv_versions",
                    f"add {version} to arxiv_versions, or correct the source",
                )


@rule("source-commit", "warning", "Files of a repository change; a commit does not.")
def source_commit(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if text.startswith("github:") and "@" not in text.split(" ", 1)[0]:
            for entry, path in corpus.where(text):
                yield Finding(
                    entry,
                    path,
                    "names no commit",
                    "write github:owner/repo@commit path",
                )


@rule("row-source", "warning", "A paper's own rows are read in the paper or its repository.")
def row_source(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row in rows(corpus):
        own = entry.record.arxiv
        match = _ARXIV.match(row.source.document)
        silent = row.note is None and row.source.via is None and row.of is None
        if match and own and match[1] != own and row.role is RowRole.PROPOSED and silent:
            yield Finding(
                entry,
                (*path, "source", "document"),
                f"a proposed row read in {match[1]}, another paper",
                "move it to that paper's entry with of:, or say in note why it stands here",
            )
