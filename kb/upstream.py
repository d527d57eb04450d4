"""Which preprints have been published since, on the word of two services that agree.

One service alone is not believed: Crossref, DBLP and OpenReview are asked for the title, and two of
them must name the same venue, year and track for a work with the same title and authors. What comes
out is evidence and a patch; a person applies it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any
from urllib.parse import urlencode

from kb.fetch import (
    Endpoints,
    Unusable,
    Work,
    answered,
    authors_agree,
    read_crossref,
    read_dblp,
    read_openreview,
    shared_authors,
    title_likeness,
)
from kb.http import Client, Failure, Refused
from kb.load import Corpus, Entry
from kb.schema import Paper, PublicationType
from kb.write import format_entry

NEAR_TITLE = 0.95
_ROWS = "5"
_PUBLISHED = frozenset(
    t.value for t in (PublicationType.CONFERENCE, PublicationType.WORKSHOP, PublicationType.JOURNAL)
)
_WAITING = frozenset({PublicationType.PREPRINT, PublicationType.SUBMISSION})


@dataclass(frozen=True, slots=True)
class Witness:
    """One service's record of a published work that fits an entry."""

    service: str
    work: Work
    likeness: float
    """Of the titles, 0 to 1."""
    shared: int
    """Family names in common."""

    @property
    def venue(self) -> tuple[str, int | None, bool]:
        """What witnesses must agree on: venue, year, and whether it is a workshop."""
        said = self.work.publication
        return (
            str(said.get("venue", "")).casefold(),
            said.get("year"),
            said.get("type") == PublicationType.WORKSHOP.value,
        )

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {
            "service": self.service,
            "source": self.work.source,
            "title": self.work.title,
            "title_likeness": round(self.likeness, 3),
            "authors_shared": self.shared,
            "publication": dict(self.work.publication),
        }


@dataclass(frozen=True, slots=True)
class News:
    """What the services say about one entry."""

    id: str
    line: int
    witnesses: tuple[Witness, ...] = ()
    agreed: tuple[Witness, Witness] | None = None
    """The two that the patch rests on."""
    silent: tuple[str, ...] = ()
    """Services that could not be asked, and why."""

    @property
    def verdict(self) -> str:
        """`published`, `disputed`, `one-source`, `unknown` or `none`."""
        if self.agreed is not None:
            return "published"
        if len({w.service for w in self.witnesses}) > 1:
            return "disputed"
        if self.witnesses:
            return "one-source"
        return "unknown" if self.silent else "none"

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {
            "id": self.id,
            "line": self.line,
            "verdict": self.verdict,
            "agreed": [w.service for w in self.agreed or ()],
            "witnesses": [w.as_json() for w in self.witnesses],
            "silent": list(self.silent),
        }


# --------------------------------------------------------------------------- services


def _crossref(title: str, client: Client, endpoints: Endpoints) -> Iterable[Work]:
    query = {"query.bibliographic": title, "rows": _ROWS}
    answer = client.ask(f"{endpoints.crossref}?{urlencode(query)}", accept="application/json")
    message = _part(answered(answer, "the title").json(), "message")
    return _readable(read_crossref, _part(message, "items"))


def _dblp(title: str, client: Client, endpoints: Endpoints) -> Iterable[Work]:
    query = {"q": title, "format": "json", "h": _ROWS}
    url = f"{endpoints.dblp}/search/publ/api?{urlencode(query)}"
    answer = client.ask(url, accept="application/json")
    return read_dblp(answered(answer, "the title").json())


def _openreview(title: str, client: Client, endpoints: Endpoints) -> Iterable[Work]:
    query = {"term": title, "content": "title", "limit": _ROWS}
    url = f"{endpoints.openreview[0]}/notes/search?{urlencode(query)}"
    answer = client.ask(url, accept="application/json")
    return _readable(read_openreview, _part(answered(answer, "the title").json(), "notes"))


def _part(data: object, name: str) -> Any:
    if not isinstance(data, Mapping) or name not in data:
        raise Unusable(f"the response has no {name}")
    return data[name]


def _readable(read: Callable[[object], Work], records: object) -> list[Work]:
    works = []
    for record in records if isinstance(records, list) else ():
        try:
            works.append(read(record))
        except Unusable:  # a search also finds what is no work: reviews, records without a title
            continue
    return works


SERVICES: Mapping[str, Callable[[str, Client, Endpoints], Iterable[Work]]] = {
    "Crossref": _crossref,
    "DBLP": _dblp,
    "OpenReview": _openreview,
}

# --------------------------------------------------------------------------- judgement


def waiting(corpus: Corpus) -> tuple[Entry[Paper], ...]:
    """Entries that may have been published since: preprints and submissions."""
    return tuple(e for e in corpus.papers if e.record.publication.type in _WAITING)


def _fits(paper: Paper, service: str, work: Work) -> Witness | None:
    titles = (paper.title, *paper.alternate_titles)
    likeness = max(title_likeness(work.title, title) for title in titles)
    published = work.publication.get("type") in _PUBLISHED and work.publication.get("year")
    if not published or likeness < NEAR_TITLE or not authors_agree(work.authors, paper.authors):
        return None
    return Witness(service, work, likeness, shared_authors(work.authors, paper.authors))


def _agreed(witnesses: Sequence[Witness]) -> tuple[Witness, Witness] | None:
    for a, b in combinations(witnesses, 2):
        if a.service != b.service and a.venue == b.venue:
            return a, b
    return None


def ask(entry: Entry[Paper], line: int, client: Client, endpoints: Endpoints) -> News:
    """What the services say about one entry; a service that fails is named, not fatal.

    Args:
        entry: A preprint with authors; without authors nothing can agree.
        line: Its line in the file.
        client: Asks.
        endpoints: Services.
    """
    witnesses: list[Witness] = []
    silent: list[str] = []
    for service, search in SERVICES.items():
        try:
            works = search(entry.record.title, client, endpoints)
        except (Failure, Unusable, Refused) as error:
            silent.append(f"{service}: {error}")
            continue
        witnesses += (w for work in works if (w := _fits(entry.record, service, work)))
    news = News(entry.record.id, line, tuple(witnesses), silent=tuple(silent))
    return replace(news, agreed=_agreed(witnesses))


# --------------------------------------------------------------------------- patch


def _amended(data: Mapping[str, Any], agreed: Sequence[Witness]) -> dict[str, Any]:
    """The entry with what two witnesses agree on, as plain data."""
    entry = dict(data)
    publication: dict[str, Any] = {}
    for witness in agreed:
        for key, value in witness.work.publication.items():
            publication.setdefault(key, value)
    sources = [w.work.source for w in agreed]
    publication["evidence"] = sources[0]
    publication["note"] = f"{agreed[0].service} and {agreed[1].service} agree: {sources[1]}."
    entry["publication"] = publication
    for name in ("doi", "openreview", "dblp"):
        value = next((v for w in agreed if (v := getattr(w.work, name)) is not None), None)
        if value is not None:
            entry.setdefault(name, value)
    present = list(entry.get("sources", ()))
    entry["sources"] = [*present, *(s for s in sources if s not in present)]
    return entry


def _span(corpus: Corpus, index: int, lines: Sequence[str]) -> tuple[int, int]:
    """First line of an entry of `papers` and the one after its last, from 0."""
    start = corpus.tree.line(("papers", index)) - 1
    later = [
        line - 1
        for path, line in corpus.tree.lines.items()
        if line - 1 > start and (len(path) == 1 or path == ("papers", index + 1))
    ]
    end = min(later, default=len(lines))
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1
    return start, end


def patch(corpus: Corpus, text: str, news: Sequence[News]) -> tuple[str, tuple[str, ...]]:
    """A unified diff of the file for all that is published, and the ids it could not cover.

    An entry that is not in canonical form is left out: a patch would also change its form.
    """
    lines = text.splitlines(keepends=True)
    by_id = {e.record.id: e for e in corpus.papers}
    changed = list(lines)
    left_out = []
    spans = {n.id: _span(corpus, by_id[n.id].index, lines) for n in news if n.agreed}
    for item in sorted((n for n in news if n.agreed), key=lambda n: -spans[n.id][0]):
        start, end = spans[item.id]
        data = corpus.tree.data["papers"][by_id[item.id].index]
        # Without a last line end the diff would say less than `git apply` needs.
        if format_entry(data, Paper) != "".join(lines[start:end]) or not text.endswith("\n"):
            left_out.append(item.id)
            continue
        new = format_entry(_amended(data, item.agreed or ()), Paper)
        changed[start:end] = new.splitlines(keepends=True)
    name = corpus.tree.file
    diff = difflib.unified_diff(lines, changed, f"a/{name}", f"b/{name}")
    return "".join(diff), tuple(left_out)
