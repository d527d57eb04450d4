"""What must hold beyond the schema: one small function per rule, each with a reason.

To add a rule, write a function here and a file `tests/kb/bad/<rule id>.yaml` that breaks it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from kb.load import Corpus, Entry, FieldPath, Problem, Severity, field_name
from kb.schema import Paper, PublicationType, Tool, Tutorial, title_key


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
    for one in RULES.values():
        found += one.run(corpus)
    return tuple(sorted(found, key=lambda p: (p.line, p.rule)))


# --------------------------------------------------------------------------- duplicates


def _repeated(
    entries: Iterable[Entry[Any]], key: Callable[[Entry[Any]], Hashable | None]
) -> Iterator[tuple[Entry[Any], Entry[Any]]]:
    """Pairs of a later entry and the first one with the same key."""
    first: dict[Hashable, Entry[Any]] = {}
    for entry in entries:
        value = key(entry)
        if value is None:
            continue
        if value in first:
            yield entry, first[value]
        else:
            first[value] = entry


@rule("duplicate-id", "error", "Links, result files and pages are found by id.")
def duplicate_id(corpus: Corpus) -> Iterator[Finding]:
    for entry, first in _repeated(corpus.entries, lambda e: str(e.record.id)):
        yield Finding(
            entry,
            ("id",),
            f"the id is taken by {first.section}[{first.index}] in line {corpus.line(first)}",
            "choose another id, or merge the entries",
        )


def _duplicate_field(corpus: Corpus, name: str) -> Iterator[Finding]:
    def key(entry: Entry[Any]) -> str | None:
        value = getattr(entry.record, name)
        return value.lower() if isinstance(value, str) else None

    for entry, first in _repeated(corpus.papers, key):
        yield Finding(
            entry, (name,), f"{first.record.id} has the same {name}", "merge the two entries"
        )


@rule("duplicate-arxiv", "error", "Two entries with one arXiv id are one paper.")
def duplicate_arxiv(corpus: Corpus) -> Iterator[Finding]:
    yield from _duplicate_field(corpus, "arxiv")


@rule("duplicate-doi", "error", "Two entries with one DOI are one paper.")
def duplicate_doi(corpus: Corpus) -> Iterator[Finding]:
    yield from _duplicate_field(corpus, "doi")


@rule("duplicate-title", "error", "Two entries with one title are one paper.")
def duplicate_title(corpus: Corpus) -> Iterator[Finding]:
    for entry, first in _repeated(corpus.papers, lambda e: title_key(e.record.title) or None):
        yield Finding(
            entry, ("title",), f"{first.record.id} has the same title", "merge the two entries"
        )


def _related(a: Paper, b: Paper) -> bool:
    return any(r.to == b.id for r in a.relations) or any(r.to == a.id for r in b.relations)


@rule("near-title", "warning", "Titles that differ in one word are often two versions of a paper.")
def near_title(corpus: Corpus) -> Iterator[Finding]:
    # Titles that share all words but one share a signature, so the search stays linear.
    seen: dict[frozenset[str], Entry[Paper]] = {}
    for entry in corpus.papers:
        words = frozenset(title_key(entry.record.title).split())
        if len(words) < 5:
            continue
        signatures = [words, *(words - {word} for word in words)]
        other = next((seen[s] for s in signatures if s in seen), None)
        if (
            other is not None
            and title_key(other.record.title) != title_key(entry.record.title)
            and not _related(entry.record, other.record)
        ):
            yield Finding(
                entry,
                ("title",),
                f"the title is nearly that of {other.record.id}",
                "merge the entries, or add a relation between them",
            )
        for signature in signatures:
            seen.setdefault(signature, entry)


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


# --------------------------------------------------------------------------- publication


@rule("arxiv-month", "error", "The first four digits of an arXiv id are year and month.")
def arxiv_month(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        posted = entry.record.posted
        if posted is not None and not (2007 <= posted[0] <= 2099 and 1 <= posted[1] <= 12):
            yield Finding(
                entry,
                ("arxiv",),
                f"{entry.record.arxiv} has no such month",
                "compare it with the paper's arXiv page",
            )


@rule("arxiv-year", "error", "`year` is the year of the first arXiv version, read off the id.")
def arxiv_year(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        posted, year = entry.record.posted, entry.record.year
        if posted is not None and year is not None and posted[0] != year:
            yield Finding(
                entry,
                ("year",),
                f"year {year} disagrees with arXiv id {entry.record.arxiv}",
                f"write {posted[0]} here; the venue's year belongs in publication",
            )


@rule("publication-evidence", "error", "Lists name wrong venues; ours are confirmed.")
def publication_evidence(corpus: Corpus) -> Iterator[Finding]:
    unpublished = {PublicationType.PREPRINT, PublicationType.RELEASE}
    for entry in corpus.papers:
        publication = entry.record.publication
        if publication.type not in unpublished and publication.evidence is None:
            yield Finding(
                entry,
                ("publication",),
                f"{publication.type.value} without evidence",
                "add publication.evidence: where the acceptance was read",
            )


@rule("publication-venue", "error", "A published work appeared somewhere and in some year.")
def publication_venue(corpus: Corpus) -> Iterator[Finding]:
    wanted = {PublicationType.CONFERENCE, PublicationType.WORKSHOP, PublicationType.JOURNAL}
    for entry in corpus.papers:
        publication = entry.record.publication
        for name in ("venue", "year"):
            if publication.type in wanted and getattr(publication, name) is None:
                yield Finding(
                    entry,
                    ("publication",),
                    f"{publication.type.value} without {name}",
                    f"add publication.{name}",
                )


# --------------------------------------------------------------------------- links between entries


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
        for index, relation in enumerate(entry.record.relations):
            if relation.to == entry.record.id:
                yield Finding(
                    entry, ("relations", index, "to"), "the entry names itself", "remove it"
                )


# --------------------------------------------------------------------------- addresses and text

_URL_FIELDS = frozenset({"url", "docs", "page", "project"})
_ACTIVE = re.compile(r"\b(?:javascript|vbscript|file|blob):\S|\bdata:\w+/", re.IGNORECASE)
_SECRET = re.compile(
    r"^(?:access_?token|token|api_?key|key|secret|password|sig|signature"
    r"|x-amz-.*|auth.*)$",
    re.IGNORECASE,
)


@rule("url-scheme", "error", "Only https links are shown; others can be altered or run code.")
def url_scheme(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if text.startswith("https://") or ":" not in text:
            continue
        active = "http://" in text or _ACTIVE.search(text) is not None
        for entry, path in corpus.where(text):
            if active or path[-1] in _URL_FIELDS:
                yield Finding(entry, path, "the link does not start with https://", "use https")


def _private(url: str) -> str | None:
    """Why a URL must not be published, or None."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        query = parse_qsl(parts.query)
    except ValueError:
        return "cannot be parsed"
    if parts.username is not None or parts.password is not None:
        return "carries a user name or password"
    if any(_SECRET.match(name) for name, _ in query):
        return "carries a key or signature"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return "names a bare IP address"
    if "." not in host or host.endswith((".local", ".localhost", ".internal", ".lan", ".home")):
        return "names a host that is not public"
    return None


@rule("private-url", "error", "Readers cannot open private addresses, and credentials leak.")
def private_url(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if "://" not in text:
            continue
        for url in re.findall(r"https?://[^\s<>)\"']+", text):
            if reason := _private(url):
                for entry, path in corpus.where(text):
                    yield Finding(entry, path, f"the link {reason}", "give a public address")


_INVISIBLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)


@rule("invisible-character", "error", "Characters that do not show hide what a text says.")
def invisible_character(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if (not text.isascii() or not text.isprintable()) and (match := _INVISIBLE.search(text)):
            message = f"holds U+{ord(match.group()):04X}, which does not show"
            for entry, path in corpus.where(text):
                yield Finding(entry, path, message, "delete it")


_TABLE_FIELDS = frozenset(
    {"summary", "title", "name", "authors", "variant", "base_model", "dataset", "venue"}
)


@rule("table-breaking", "error", "A bar or line break would tear the table that shows the text.")
def table_breaking(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if "|" not in text and "\n" not in text:
            continue
        what = "a bar |" if "|" in text else "a line break"
        for entry, path in corpus.where(text):
            name = next((p for p in reversed(path) if isinstance(p, str)), "")
            if name in _TABLE_FIELDS:
                yield Finding(entry, path, f"holds {what}", "rephrase without it")


@rule("html", "error", "Texts are shown as they are; markup in them is a mistake or an attack.")
def html(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if "<" in text and (match := re.search(r"<[/!?a-zA-Z][^>]{0,40}", text)):
            for entry, path in corpus.where(text):
                yield Finding(entry, path, f"holds markup ({match.group()})", "write plain text")


@rule("first-person", "error", "A summary in the first person was copied from an abstract.")
def first_person(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.entries:
        match = re.search(r"\b(?:[Ww]e|[Oo]urs?|[Uu]s|I)\b(?!-)", entry.record.summary)
        if match and match.group() != "US":
            yield Finding(
                entry,
                ("summary",),
                f"speaks in the first person ({match.group()!r})",
                "say in own words what the work does",
            )


_PLACEHOLDER = re.compile(
    r"^(?:todo|tbd|tba|fixme|xxx|lorem|coming soon|placeholder|insert |to be (?:added|filled|done))"
    r"|^(?:n/?a|unknown|\?+|-+|\.\.\.|…)$|lorem ipsum|\bexample\.(?:com|org)\b",
    re.IGNORECASE,
)


@rule("placeholder", "error", "A promise is not a fact; leave the key out until it is known.")
def placeholder(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if _PLACEHOLDER.search(text):
            for entry, path in corpus.where(text):
                yield Finding(
                    entry, path, "holds placeholder text", "fill it in, or remove the key"
                )


# --------------------------------------------------------------------------- numbers


@rule("measure-range", "error", "A value outside the metric's range is a slip of unit or digit.")
def measure_range(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        for i, row in enumerate(entry.record.results):
            for j, measure in enumerate(row.measures):
                metric = measure.metric
                factor = metric.units[measure.unit or metric.unit]
                for name in ("value", "upper", "dense"):
                    number = getattr(measure, name)
                    if number is None:
                        continue
                    low = metric.low is not None and number * factor < metric.low
                    high = metric.high is not None and number * factor > metric.high
                    if low or high:
                        bound = f"below {metric.low}" if low else f"above {metric.high}"
                        yield Finding(
                            entry,
                            ("results", i, "measures", j, name),
                            f"{metric.value} of {number} is {bound}, in units of {metric.unit}",
                            f"check value and unit (one of {', '.join(metric.units)})",
                        )


@rule("dense-sparsity", "error", "The dense model is the one from which nothing was removed.")
def dense_sparsity(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        for i, row in enumerate(entry.record.results):
            if row.sparsity.kind.value != "none" and row.role.value == "dense":
                yield Finding(
                    entry,
                    ("results", i, "sparsity"),
                    "a dense row has a sparsity",
                    "write sparsity: {kind: none}, or another role",
                )
