"""The literature in the formats of other programs: the same input gives the same bytes.

No clock, no random id, no order left to a set: a file changes only when the literature does.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import NAMESPACE_URL, uuid5
from xml.sax.saxutils import escape, quoteattr

from kb.schema import (
    SCHEMA_VERSION,
    Literature,
    Measure,
    Metric,
    Paper,
    Protocol,
    PublicationType,
    Record,
    Result,
    Section,
    Source,
    Sparsity,
)
from kb.text import csv_text, latex, one_line, safe_url, source_url

TITLE = "Pruning of diffusion models: literature and reported results"

FILES: Mapping[str, tuple[str, str]] = {
    "papers.json": ("application/json", "Every record with all fields and derived addresses."),
    "results.csv": ("text/csv", "Reported results, one line per measured number."),
    "papers.bib": ("application/x-bibtex", "One BibTeX entry per work."),
    "papers.sqlite": ("application/vnd.sqlite3", "The same as relational tables."),
    "feed.atom": ("application/atom+xml", "Entries by the day of their last check."),
    "papers.jsonld": ("application/ld+json", "schema.org description of the data set and works."),
    "llms.txt": ("text/markdown", "Plain list with one line per work."),
}
"""Name, media type and content of every export, besides `datapackage.json`."""


def day(literature: Literature) -> str:
    """The latest day on which any entry was checked."""
    groups = (literature.papers, literature.tools, literature.tutorials)
    dates = [record.curation.date for group in groups for record in group]
    return max(dates, default="1970-01-01")


def venue(paper: Paper) -> str:
    """Where a work appeared, in a few words, with the year of the venue."""
    publication = paper.publication
    if publication.type is PublicationType.PREPRINT:
        return f"arXiv {paper.year}" if paper.arxiv and paper.year else "preprint"
    words = [publication.venue or str(publication.type.value)]
    if publication.year:
        words.append(str(publication.year))
    if publication.type is PublicationType.WORKSHOP:
        words.append("workshop")
    elif publication.type is PublicationType.SUBMISSION:
        words.append("submission")
    elif publication.track is not None and publication.track.value in ("findings", "demo"):
        words.append(publication.track.value)
    return " ".join(words)


# --------------------------------------------------------------------------- JSON


def _json(value: Mapping[str, object]) -> bytes:
    """An object with one key a line; a list of objects has one of them a line."""
    parts = []
    for key, item in value.items():
        if isinstance(item, list) and item and isinstance(item[0], dict):
            text = "[\n" + ",\n".join(json.dumps(i, ensure_ascii=False) for i in item) + "\n]"
        else:
            text = json.dumps(item, ensure_ascii=False)
        parts.append(f"{json.dumps(key)}: {text}")
    return ("{\n" + ",\n".join(parts) + "\n}\n").encode()


def papers_json(literature: Literature) -> bytes:
    """Every record; absent fields are left out, addresses of works and sources are added."""
    data = literature.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    papers = [
        {**entry, "url": safe_url(paper.url)}
        for entry, paper in zip(data.pop("papers"), literature.papers, strict=True)
    ]
    head = {"schema_version": literature.schema_version, "updated": day(literature)}
    return _json({**head, "papers": papers, **data})


# --------------------------------------------------------------------------- CSV

Row = tuple[Paper, Result, Measure]
_COLUMNS: Mapping[str, Callable[[Paper, Result, Measure], object]] = {
    "schema_version": lambda p, r, m: SCHEMA_VERSION,
    "paper": lambda p, r, m: p.id,
    "arxiv": lambda p, r, m: p.arxiv,
    "row": lambda p, r, m: r.id,
    "role": lambda p, r, m: r.role.value,
    "variant": lambda p, r, m: r.variant,
    "of": lambda p, r, m: r.of,
    "base_model": lambda p, r, m: r.base_model,
    "zoo": lambda p, r, m: r.zoo,
    "dataset": lambda p, r, m: r.dataset,
    "resolution": lambda p, r, m: r.resolution,
    "sparsity_kind": lambda p, r, m: r.sparsity.kind.value,
    "sparsity": lambda p, r, m: r.sparsity.value,
    "pattern": lambda p, r, m: r.sparsity.pattern,
    "sparsity_origin": lambda p, r, m: r.sparsity.origin.value,
    "sparsity_scope": lambda p, r, m: r.sparsity.scope,
    "metric": lambda p, r, m: m.metric.value,
    "value": lambda p, r, m: m.value,
    "upper": lambda p, r, m: m.upper,
    "unit": lambda p, r, m: m.unit or m.metric.unit,
    "dense": lambda p, r, m: m.dense,
    "spread": lambda p, r, m: m.spread,
    "bound": lambda p, r, m: m.bound.value,
    "better": lambda p, r, m: m.metric.direction.value,
    "canonical_value": lambda p, r, m: m.canonical,
    "canonical_dense": lambda p, r, m: m.canonical_dense,
    "canonical_unit": lambda p, r, m: m.metric.unit,
    "measure_note": lambda p, r, m: m.note,
    "sampler": lambda p, r, m: r.protocol.sampler,
    "steps": lambda p, r, m: r.protocol.steps,
    "guidance": lambda p, r, m: r.protocol.guidance,
    "samples": lambda p, r, m: r.protocol.samples,
    "seeds": lambda p, r, m: r.protocol.seeds,
    "reference_set": lambda p, r, m: r.protocol.reference_set,
    "fid_implementation": lambda p, r, m: r.protocol.fid_implementation,
    "batch": lambda p, r, m: r.protocol.batch,
    "retraining": lambda p, r, m: r.protocol.retraining,
    "protocol_note": lambda p, r, m: r.protocol.note,
    "hardware": lambda p, r, m: r.hardware,
    "precision": lambda p, r, m: r.precision,
    "source": lambda p, r, m: r.source.document,
    "source_url": lambda p, r, m: source_url(r.source.document),
    "place": lambda p, r, m: r.source.place,
    "place_row": lambda p, r, m: r.source.row,
    "via": lambda p, r, m: r.source.via,
    "status": lambda p, r, m: r.status.value,
    "note": lambda p, r, m: r.note,
}
_NUMBERS = frozenset(
    {"sparsity", "value", "upper", "dense", "spread", "canonical_value", "canonical_dense"}
    | {"steps", "guidance", "samples", "seeds", "batch"}
)


# Columns that stand for a field of another name; the rest are fields of a row, number or protocol.
_RENAMED: Mapping[str, tuple[type[Record], str]] = {
    "row": (Result, "id"),
    "sparsity_kind": (Sparsity, "kind"),
    "sparsity": (Sparsity, "value"),
    "pattern": (Sparsity, "pattern"),
    "sparsity_origin": (Sparsity, "origin"),
    "sparsity_scope": (Sparsity, "scope"),
    "measure_note": (Measure, "note"),
    "protocol_note": (Protocol, "note"),
    "source": (Source, "document"),
    "place": (Source, "place"),
    "place_row": (Source, "row"),
    "via": (Source, "via"),
}
_DERIVED = {
    "schema_version": "Version of the schema.",
    "paper": "Id of the entry.",
    "better": "Whether a lower or a higher value is better, or neither.",
    "canonical_value": "`value` in `canonical_unit`.",
    "canonical_dense": "`dense` in `canonical_unit`.",
    "canonical_unit": "The first unit of the metric.",
    "source_url": "Address of the source, where it has one.",
}


def columns() -> dict[str, str]:
    """The columns of results.csv, and of the table of measures, with what they hold."""
    found = {}
    for name in _COLUMNS:
        records = (r for r in (Result, Measure, Protocol, Paper) if name in r.model_fields)
        record, field = _RENAMED.get(name) or (next(records, Paper), name)
        found[name] = _DERIVED.get(name) or record.model_fields[field].description or ""
    return found


def _rows(literature: Literature) -> Iterator[Row]:
    for paper in literature.papers:
        for result in paper.results:
            for measure in result.measures:
                yield paper, result, measure


def _number(value: object) -> str:
    # 12 digits: every printed value survives, products with unit factors show no binary tail.
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def results_csv(literature: Literature) -> bytes:
    """One line per measured number, with the settings, the dense baseline and the source."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in _rows(literature):
        values = [(name, read(*row)) for name, read in _COLUMNS.items()]
        writer.writerow(
            "" if v is None else _number(v) if name in _NUMBERS else csv_text(str(v))
            for name, v in values
        )
    return out.getvalue().encode()


# --------------------------------------------------------------------------- BibTeX

_BIB_TYPES = {
    PublicationType.CONFERENCE: ("inproceedings", "booktitle"),
    PublicationType.WORKSHOP: ("inproceedings", "booktitle"),
    PublicationType.JOURNAL: ("article", "journal"),
}


_PAGE_RANGE = re.compile(r"(?<=\d)\s?[-–]\s?(?=\d)")


def bibtex_entry(paper: Paper) -> str:
    """One entry; the key is the paper's id."""
    publication = paper.publication
    kind, place = _BIB_TYPES.get(publication.type, ("misc", "howpublished"))
    fields: dict[str, str] = {"title": f"{{{latex(paper.title)}}}"}
    people = [_bib_name(name) for name in paper.authors]
    if people and paper.et_al:
        people.append("others")
    if people:
        fields["author"] = " and ".join(people)
    if publication.venue:
        name = publication.venue
        if publication.type is PublicationType.WORKSHOP:
            name += f" workshop {publication.workshop}" if publication.workshop else " workshop"
        elif publication.type is PublicationType.SUBMISSION:
            name = f"Submitted to {name}"
        fields[place] = latex(name)
    elif place == "booktitle":
        fields[place] = latex(publication.workshop or str(publication.type.value))
    elif place == "journal":
        fields[place] = "unknown"
    if year := publication.year or paper.year:
        fields["year"] = str(year)
    if publication.pages:
        fields["pages"] = latex(_PAGE_RANGE.sub("--", publication.pages))
    if paper.arxiv:
        fields["eprint"], fields["archiveprefix"] = paper.arxiv, "arXiv"
    if paper.doi:
        fields["doi"] = latex(paper.doi)
    if url := safe_url(paper.url):
        fields["url"] = url
    body = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{paper.id},\n{body}}}\n"


def _bib_name(name: str) -> str:
    shown = latex(name)
    # A comma or the word "and" inside one name would split it.
    return f"{{{shown}}}" if "," in shown or " and " in shown.lower() else shown


def papers_bib(literature: Literature) -> bytes:
    """One BibTeX entry per work, in UTF-8."""
    head = f"% {TITLE}; schema version {literature.schema_version}; UTF-8\n\n"
    return (head + "\n".join(bibtex_entry(p) for p in literature.papers)).encode()


# --------------------------------------------------------------------------- SQLite

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE papers (
  id TEXT PRIMARY KEY, section TEXT NOT NULL, kind TEXT NOT NULL, family TEXT NOT NULL,
  title TEXT NOT NULL, year INTEGER, arxiv TEXT, doi TEXT, openreview TEXT, dblp TEXT,
  publication_type TEXT NOT NULL, venue TEXT, venue_year INTEGER, track TEXT, workshop TEXT,
  publication_evidence TEXT, page TEXT, project TEXT, url TEXT, training TEXT,
  summary TEXT NOT NULL, evidence TEXT NOT NULL, depth TEXT NOT NULL, checked TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE authors (
  paper TEXT NOT NULL REFERENCES papers, position INTEGER NOT NULL, name TEXT NOT NULL,
  PRIMARY KEY (paper, position)) WITHOUT ROWID;
CREATE TABLE tags (
  paper TEXT NOT NULL REFERENCES papers, field TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (paper, field, value)) WITHOUT ROWID;
CREATE TABLE code (
  paper TEXT NOT NULL REFERENCES papers, position INTEGER NOT NULL, url TEXT, official INTEGER,
  licence TEXT, status TEXT NOT NULL, commit_id TEXT, checked TEXT, note TEXT,
  PRIMARY KEY (paper, position)) WITHOUT ROWID;
CREATE TABLE relations (
  paper TEXT NOT NULL REFERENCES papers, position INTEGER NOT NULL, type TEXT NOT NULL,
  target TEXT NOT NULL, note TEXT, source TEXT, PRIMARY KEY (paper, position)) WITHOUT ROWID;
CREATE TABLE sources (
  paper TEXT NOT NULL REFERENCES papers, position INTEGER NOT NULL, reference TEXT NOT NULL,
  url TEXT, PRIMARY KEY (paper, position)) WITHOUT ROWID;
CREATE TABLE tools (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, category TEXT NOT NULL, url TEXT, package TEXT,
  licence TEXT, status TEXT NOT NULL, version TEXT, summary TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tutorials (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, title TEXT NOT NULL, year INTEGER, url TEXT,
  summary TEXT NOT NULL) WITHOUT ROWID;
"""
_TAG_FIELDS = (
    *("granularity", "units", "criteria", "stage", "recovery", "calibration"),
    *("architectures", "tasks", "modalities", "base_models", "not_reported"),
)
_MEASURES = tuple(name for name in _COLUMNS if name not in ("schema_version", "arxiv"))
_VERSION_OFFSET = 96


def papers_sqlite(literature: Literature) -> bytes:
    """A SQLite database; the version of the writing library is masked in its header."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("PRAGMA encoding = 'UTF-8'")
        connection.executescript("BEGIN;" + _TABLES)
        typed = ", ".join(f'"{n}" {"REAL" if n in _NUMBERS else "TEXT"}' for n in _MEASURES)
        connection.execute(f"CREATE TABLE measures (number INTEGER PRIMARY KEY, {typed})")
        for table, rows in _tables(literature).items():
            if rows:
                marks = ", ".join("?" * len(rows[0]))
                connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.execute("COMMIT")
        data = bytearray(connection.serialize())
    finally:
        connection.close()
    data[_VERSION_OFFSET : _VERSION_OFFSET + 4] = (3_000_000).to_bytes(4, "big")
    return bytes(data)


def _tables(literature: Literature) -> dict[str, list[tuple[Any, ...]]]:
    papers = literature.papers
    return {
        "meta": [("schema_version", literature.schema_version), ("updated", day(literature))],
        "papers": [
            (
                *(p.id, p.section.value, p.kind.value, p.family.value, p.title, p.year, p.arxiv),
                *(p.doi, p.openreview, p.dblp, p.publication.type.value, p.publication.venue),
                p.publication.year,
                p.publication.track and p.publication.track.value,
                *(p.publication.workshop, p.publication.evidence),
                *(safe_url(p.page), safe_url(p.project), safe_url(p.url), p.training, p.summary),
                *(p.evidence.value, p.curation.depth.value, p.curation.date),
            )
            for p in papers
        ],
        "authors": [(p.id, i, name) for p in papers for i, name in enumerate(p.authors)],
        "tags": [
            (p.id, field, value)
            for p in papers
            for field in _TAG_FIELDS
            for value in dict.fromkeys(str(v) for v in getattr(p, field))
        ],
        "code": [
            (
                *(p.id, i, safe_url(c.url), None if c.official is None else int(c.official)),
                *(c.licence, c.status.value, c.commit, c.checked, c.note),
            )
            for p in papers
            for i, c in enumerate(p.code)
        ],
        "relations": [
            (p.id, i, r.type.value, r.to, r.note, r.source)
            for p in papers
            for i, r in enumerate(p.relations)
        ],
        "sources": [(p.id, i, s, source_url(s)) for p in papers for i, s in enumerate(p.sources)],
        "tools": [
            (
                *(t.id, t.name, t.category.value, safe_url(t.url), t.package, t.licence),
                *(t.status.value, t.version, t.summary),
            )
            for t in literature.tools
        ],
        "tutorials": [
            (t.id, t.kind.value, t.title, t.year, safe_url(t.url), t.summary)
            for t in literature.tutorials
        ],
        "measures": [
            (i, *(_COLUMNS[name](*row) for name in _MEASURES))
            for i, row in enumerate(_rows(literature))
        ],
    }


# --------------------------------------------------------------------------- Atom


def feed_atom(literature: Literature, repository: str) -> bytes:
    """The works, most recently checked first; dates are days of the last check."""
    papers = sorted(literature.papers, key=lambda p: (p.curation.date, p.id), reverse=True)
    entries = "".join(_atom_entry(p, repository) for p in papers)
    head = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<feed xmlns="http://www.w3.org/2005/Atom">\n'
        f"  <title>{escape(TITLE)}</title>\n"
        f"  <subtitle>Schema version {literature.schema_version}</subtitle>\n"
        f"  <id>{escape(repository)}</id>\n"
        f"  <link href={quoteattr(repository)}/>\n"
        f"  <updated>{day(literature)}T00:00:00Z</updated>\n"
        "  <author><name>The diffusion-pruning contributors</name></author>\n"
    )
    return (head + entries + "</feed>\n").encode()


def _atom_entry(paper: Paper, repository: str) -> str:
    identifier = uuid5(NAMESPACE_URL, f"{repository}#{paper.id}")
    link = safe_url(paper.url) or repository
    people = "".join(
        f"    <author><name>{escape(one_line(name))}</name></author>\n" for name in paper.authors
    )
    return (
        "  <entry>\n"
        f"    <title>{escape(one_line(paper.title))}</title>\n"
        f"    <id>urn:uuid:{identifier}</id>\n"
        f"    <link href={quoteattr(link)}/>\n"
        f"    <updated>{paper.curation.date}T00:00:00Z</updated>\n"
        f"{people}"
        f"    <category term={quoteattr(paper.family.value)}/>\n"
        f"    <summary>{escape(one_line(paper.summary))}</summary>\n"
        "  </entry>\n"
    )


# --------------------------------------------------------------------------- JSON-LD


def papers_jsonld(literature: Literature, repository: str) -> bytes:
    """A schema.org data set and the works that it lists."""
    dataset = {
        "@type": "Dataset",
        "@id": repository,
        "name": TITLE,
        "description": "Works on making diffusion models smaller, with reported results, each with "
        "its source.",
        "license": "https://spdx.org/licenses/MIT.html",
        "version": literature.schema_version,
        "dateModified": day(literature),
        "isAccessibleForFree": True,
        "hasPart": [{"@id": _jsonld_id(p, repository)} for p in literature.papers],
    }
    works = [_jsonld_work(p, repository) for p in literature.papers]
    return _json({"@context": "https://schema.org", "@graph": [dataset, *works]})


def _jsonld_id(paper: Paper, repository: str) -> str:
    return safe_url(paper.url) or f"{repository}#{paper.id}"


def _jsonld_work(paper: Paper, repository: str) -> dict[str, Any]:
    work: dict[str, Any] = {
        "@type": "ScholarlyArticle" if paper.kind.value == "paper" else "SoftwareSourceCode",
        "@id": _jsonld_id(paper, repository),
        "name": one_line(paper.title),
        "identifier": paper.id,
        "abstract": one_line(paper.summary),
    }
    if paper.authors:
        work["author"] = [{"@type": "Person", "name": one_line(n)} for n in paper.authors]
    if year := paper.publication.year or paper.year:
        work["datePublished"] = str(year)
    if paper.publication.venue:
        work["isPartOf"] = {"@type": "Periodical", "name": paper.publication.venue}
    same = (paper.arxiv_url, paper.doi_url, paper.openreview_url, paper.dblp_url)
    if links := [u for u in map(safe_url, same) if u and u != work["@id"]]:
        work["sameAs"] = links
    return work


# --------------------------------------------------------------------------- plain list


def llms_txt(literature: Literature) -> bytes:
    """A short Markdown list for readers that are programs."""
    lines = [
        f"# {TITLE}",
        "",
        "> Every entry names where it was read. Numbers are in results.csv, each with its source.",
        "",
        f"Schema version {literature.schema_version}; last checked {day(literature)}.",
    ]
    for section, heading in (
        (Section.PRUNING, "Pruning"),
        (Section.COMPLEMENTARY, "Techniques that combine with pruning"),
    ):
        works = [p for p in literature.papers if p.section is section]
        if works:
            lines += ["", f"## {heading}", ""]
            lines += [_llms_line(p.title, p.url, f"{venue(p)}. {p.summary}") for p in works]
    if literature.tools:
        lines += ["", "## Tools", ""]
        lines += [_llms_line(t.name, t.url, t.summary) for t in literature.tools]
    if literature.tutorials:
        lines += ["", "## Tutorials", ""]
        lines += [_llms_line(t.title, t.url, t.summary) for t in literature.tutorials]
    return ("\n".join(lines) + "\n").encode()


def _llms_line(name: str, url: str | None, about: str) -> str:
    label = one_line(name).replace("[", "(").replace("]", ")")
    address = safe_url(url)
    head = f"[{label}]({address})" if address else label
    return f"- {head}: {one_line(about)}"


# --------------------------------------------------------------------------- all of them


def datapackage(literature: Literature, files: Mapping[str, bytes]) -> bytes:
    """A Frictionless data package that lists `files` with size and SHA-256."""
    resources = []
    for name, data in files.items():
        mediatype, about = FILES[name]
        resource: dict[str, Any] = {
            "name": name.replace(".", "-"),
            "path": name,
            "description": about,
            "mediatype": mediatype,
            "bytes": len(data),
            "hash": f"sha256:{hashlib.sha256(data).hexdigest()}",
        }
        if name == "results.csv":
            resource["profile"] = "tabular-data-resource"
            resource["schema"] = {"fields": [_field(*column) for column in columns().items()]}
        resources.append(resource)
    return _json(
        {
            "profile": "data-package",
            "name": "diffusion-pruning",
            "title": TITLE,
            "version": literature.schema_version,
            "licenses": [{"name": "MIT", "title": "MIT License"}],
            "resources": resources,
        }
    )


def _field(column: str, meaning: str) -> dict[str, Any]:
    field: dict[str, Any] = {"name": column, "description": meaning}
    field["type"] = "number" if column in _NUMBERS else "string"
    if column == "metric":
        field["constraints"] = {"enum": [m.value for m in Metric]}
    return field


def exports(literature: Literature, repository: str) -> dict[str, bytes]:
    """Every file by name; `datapackage.json` comes last and lists the others.

    Args:
        literature: What papers.yaml holds.
        repository: Address of the project, used for ids in the feed and the JSON-LD.
    """
    files = {
        "papers.json": papers_json(literature),
        "results.csv": results_csv(literature),
        "papers.bib": papers_bib(literature),
        "papers.sqlite": papers_sqlite(literature),
        "feed.atom": feed_atom(literature, repository),
        "papers.jsonld": papers_jsonld(literature, repository),
        "llms.txt": llms_txt(literature),
    }
    return {**files, "datapackage.json": datapackage(literature, files)}
