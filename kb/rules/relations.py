"""Links between entries."""

from __future__ import annotations

from collections.abc import Iterator

from kb.load import Corpus, FieldPath
from kb.rules.registry import Finding, related, rows, rule
from kb.schema import Paper, RelationType, RowRole, Tool, Tutorial


@rule("dangling-relation", "error", "A relation to an entry that is not there leads nowhere.")
def dangling_relation(corpus: Corpus) -> Iterator[Finding]:
    known = corpus.ids.get("papers", frozenset())
    for entry in corpus.entries:
        record = entry.record
        targets: list[tuple[FieldPath, str | None]] = []
        if isinstance(record, Paper):
            targets += [(("relations", i, "to"), r.to) for i, r in enumerate(record.relations)]
            targets += [(("results", i, "of"), r.of) for i, r in enumerate(record.results)]
        elif isinstance(record, (Tool, Tutorial)):
            targets += [(("papers", i), paper) for i, paper in enumerate(record.papers)]
        for path, target in targets:
            if target is not None and target not in known:
                yield Finding(
                    entry, path, f"there is no paper {target}", "correct the id, or add the paper"
                )


@rule("self-relation", "error", "A work does not relate to itself.")
def self_relation(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        record = entry.record
        own = [("relations", i, "to") for i, r in enumerate(record.relations) if r.to == record.id]
        own += [("results", i, "of") for i, r in enumerate(record.results) if r.of == record.id]
        for path in own:
            yield Finding(entry, path, "the entry names itself", "remove it")


@rule("repeated-relation", "error", "Said twice, one of the two will be forgotten in an edit.")
def repeated_relation(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        seen = set()
        for index, relation in enumerate(entry.record.relations):
            key = (relation.type, relation.to)
            if key in seen:
                yield Finding(
                    entry,
                    ("relations", index),
                    f"{relation.type.value} {relation.to} stands here twice",
                    "merge the two",
                )
            seen.add(key)


_ONE_WAY = frozenset({RelationType.EXTENDS, RelationType.FOLLOW_UP, RelationType.IMPLEMENTS})


@rule("contradictory-relation", "error", "Of two works, only the later one builds on the other.")
def contradictory_relation(corpus: Corpus) -> Iterator[Finding]:
    seen: set[tuple[RelationType, str, str]] = set()
    for entry in corpus.papers:
        for index, relation in enumerate(entry.record.relations):
            if relation.type not in _ONE_WAY or relation.to == entry.record.id:
                continue
            if (relation.type, relation.to, entry.record.id) in seen:
                yield Finding(
                    entry,
                    ("relations", index),
                    f"{relation.to} says {relation.type.value} of this entry too",
                    "keep it on the later work",
                )
            seen.add((relation.type, entry.record.id, relation.to))


@rule("relation-order", "warning", "A work rarely builds on one that appeared a year after it.")
def relation_order(corpus: Corpus) -> Iterator[Finding]:
    posted = {e.record.id: e.record.posted for e in corpus.papers}
    for entry in corpus.papers:
        own = entry.record.posted
        for index, relation in enumerate(entry.record.relations):
            other = posted.get(relation.to)
            if relation.type not in _ONE_WAY or own is None or other is None:
                continue
            months = (other[0] - own[0]) * 12 + other[1] - own[1]
            if months > 12:
                yield Finding(
                    entry,
                    ("relations", index),
                    f"{relation.to} was posted {months} months later",
                    "turn the relation round, or check the arXiv ids",
                )


@rule("followup-authors", "warning", "A follow-up by the same authors has one of them at least.")
def followup_authors(corpus: Corpus) -> Iterator[Finding]:
    records = {e.record.id: e.record for e in corpus.papers}
    for entry in corpus.papers:
        for index, relation in enumerate(entry.record.relations):
            other = records.get(relation.to)
            if relation.type is not RelationType.FOLLOW_UP or other is None:
                continue
            a, b = entry.record, other
            complete = a.authors and b.authors and not (a.et_al or b.et_al)
            if complete and not set(a.authors) & set(b.authors):
                yield Finding(
                    entry,
                    ("relations", index),
                    f"shares no author with {relation.to}",
                    "write extends, or check the names",
                )


@rule("row-relation", "warning", "Who prints another method's numbers compares itself with it.")
def row_relation(corpus: Corpus) -> Iterator[Finding]:
    records = {e.record.id: e.record for e in corpus.papers}
    told: set[tuple[str, str]] = set()
    for entry, path, row in rows(corpus):
        other = records.get(row.of) if row.of else None
        if other is None or other.id == entry.record.id or related(entry.record, other):
            continue
        if (entry.record.id, other.id) not in told:
            told.add((entry.record.id, other.id))
            yield Finding(
                entry,
                (*path, "of"),
                f"a row of {other.id}, but no relation to it",
                f"add to relations: {{type: compares-with, to: {other.id}}}",
            )


@rule("row-role", "error", "The model of another entry is not what this paper proposes.")
def row_role(corpus: Corpus) -> Iterator[Finding]:
    for entry, path, row in rows(corpus):
        if row.of is not None and row.of != entry.record.id and row.role is RowRole.PROPOSED:
            yield Finding(
                entry,
                (*path, "of"),
                f"a row of {row.of} is called proposed",
                "write role: baseline, or remove of",
            )
