"""What a rule is, and the list of all of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kb.load import Corpus, Entry, FieldPath, Problem, Severity, field_name
from kb.schema import Measure, Metric, Paper, Result


@dataclass(frozen=True, slots=True)
class Finding:
    """One breach of a rule: where, what, and how to mend it."""

    entry: Entry[Any]
    path: FieldPath
    message: str
    mend: str


Check = Callable[[Corpus], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A named check over the whole corpus."""

    id: str
    severity: Severity
    reason: str
    check: Check

    def run(self, corpus: Corpus) -> Iterator[Problem]:
        """The rule's findings as problems with file and line."""
        for found in self.check(corpus):
            yield Problem(
                corpus.tree.file,
                corpus.line(found.entry, found.path),
                found.entry.record.id,
                field_name(found.path),
                self.id,
                self.severity,
                found.message,
                found.mend,
            )


_RULES: dict[str, Rule] = {}
RULES: Mapping[str, Rule] = _RULES
"""Every rule by id, in order of definition."""


def rule(id: str, severity: Severity, reason: str) -> Callable[[Check], Check]:
    """Register a check under `id` (lower case with hyphens, unique)."""

    def register(check: Check) -> Check:
        if id in _RULES:
            raise ValueError(f"rule {id} is defined twice")
        _RULES[id] = Rule(id, severity, reason, check)
        return check

    return register


def check(corpus: Corpus) -> tuple[Problem, ...]:
    """All problems of a corpus, of the schema and of every rule, by line."""
    found = [*corpus.problems]
    # A corpus is a hundred thousand objects without cycles; looking for cycles among them while
    # the rules run takes as long as the rules.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for one in RULES.values():
            found += one.run(corpus)
    finally:
        if was_enabled:
            gc.enable()
    return tuple(sorted(found, key=lambda p: (p.line, p.rule)))


class Row(NamedTuple):
    """A result row with its place."""

    entry: Entry[Paper]
    path: FieldPath
    row: Result


class Number(NamedTuple):
    """A measure with its place."""

    entry: Entry[Paper]
    path: FieldPath
    row: Result
    measure: Measure


@dataclass(frozen=True, slots=True)
class Numbers:
    """All rows and measures of a corpus, in file order, and the measures by metric."""

    rows: tuple[Row, ...]
    measures: tuple[Number, ...]
    by_metric: Mapping[Metric, tuple[Number, ...]]


def _gather(corpus: Corpus) -> Numbers:
    found = []
    numbers = []
    by_metric: dict[Metric, list[Number]] = {}
    for entry in corpus.papers:
        for index, row in enumerate(entry.record.results):
            path: FieldPath = ("results", index)
            found.append(Row(entry, path, row))
            for place, measure in enumerate(row.measures):
                number = Number(entry, (*path, "measures", place), row, measure)
                numbers.append(number)
                by_metric.setdefault(measure.metric, []).append(number)
    lists = {metric: tuple(some) for metric, some in by_metric.items()}
    return Numbers(tuple(found), tuple(numbers), lists)


# Some thirty rules walk the same rows; they are gathered once for the corpus at hand.
_last: list[tuple[Corpus, Numbers]] = []


def numbers(corpus: Corpus) -> Numbers:
    """The rows and measures of a corpus."""
    if not _last or _last[0][0] is not corpus:
        _last[:] = [(corpus, _gather(corpus))]
    return _last[0][1]


def rows(corpus: Corpus) -> tuple[Row, ...]:
    """Every result row with its entry and its path in the entry."""
    return numbers(corpus).rows


def measures(corpus: Corpus, *metrics: Metric) -> Iterator[Number]:
    """Every measure of the given metrics."""
    by_metric = numbers(corpus).by_metric
    for metric in metrics:
        yield from by_metric.get(metric, ())


def repeated(
    entries: Iterable[Entry[Any]], key: Callable[[Entry[Any]], Hashable | None]
) -> Iterator[tuple[Entry[Any], Entry[Any]]]:
    """Pairs of a later entry and the first one with the same key; None matches nothing."""
    first: dict[Hashable, Entry[Any]] = {}
    for entry in entries:
        value = key(entry)
        if value is None:
            continue
        if value in first:
            yield entry, first[value]
        else:
            first[value] = entry


def related(a: Paper, b: Paper) -> bool:
    """Whether a relation leads from one to the other."""
    return any(r.to == b.id for r in a.relations) or any(r.to == a.id for r in b.relations)


def last_name(path: FieldPath) -> str:
    """The innermost key of a path, without list positions."""
    return next((part for part in reversed(path) if isinstance(part, str)), "")
