"""One work, one entry: identifiers, titles and what makes two entries the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kb.load import Corpus, Entry
from kb.rules.registry import Finding, related, repeated, rule
from kb.schema import Paper, title_key


@rule("duplicate-id", "error", "Links, result files and pages are found by id.")
def duplicate_id(corpus: Corpus) -> Iterator[Finding]:
    for entry, first in repeated(corpus.entries, lambda e: str(e.record.id)):
        yield Finding(
            entry,
            ("id",),
            f"the id is taken by {first.section}[{first.index}] in line {corpus.line(first)}",
            "choose another id, or merge the entries",
        )


def _duplicate_field(corpus: Corpus, name: str, fold: bool = True) -> Iterator[Finding]:
    def key(entry: Entry[Any]) -> str | None:
        value = getattr(entry.record, name)
        return (value.lower() if fold else value) if isinstance(value, str) else None

    for entry, first in repeated(corpus.papers, key):
        yield Finding(
            entry, (name,), f"{first.record.id} has the same {name}", "merge the two entries"
        )


@rule("duplicate-arxiv", "error", "Two entries with one arXiv id are one paper.")
def duplicate_arxiv(corpus: Corpus) -> Iterator[Finding]:
    yield from _duplicate_field(corpus, "arxiv")


@rule("duplicate-doi", "error", "Two entries with one DOI are one paper.")
def duplicate_doi(corpus: Corpus) -> Iterator[Finding]:
    yield from _duplicate_field(corpus, "doi")


@rule("duplicate-openreview", "error", "Two entries with one OpenReview forum are one paper.")
def duplicate_openreview(corpus: Corpus) -> Iterator[Finding]:
    yield from _duplicate_field(corpus, "openreview", fold=False)


@rule("duplicate-title", "error", "Two entries with one title, old or new, are one paper.")
def duplicate_title(corpus: Corpus) -> Iterator[Finding]:
    first: dict[str, Entry[Paper]] = {}
    for entry in corpus.papers:
        record = entry.record
        for index, title in enumerate((record.title, *record.alternate_titles)):
            key = title_key(title)
            other = first.setdefault(key, entry) if key else entry
            if other is not entry:
                yield Finding(
                    entry,
                    ("alternate_titles", index - 1) if index else ("title",),
                    f"{other.record.id} has the same title",
                    "merge the two entries",
                )


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
            and not related(entry.record, other.record)
        ):
            yield Finding(
                entry,
                ("title",),
                f"the title is nearly that of {other.record.id}",
                "merge the entries, or add a relation between them",
            )
        for signature in signatures:
            seen.setdefault(signature, entry)


@rule("alternate-title", "error", "An alternate title that is the title says nothing.")
def alternate_title(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        seen = {title_key(entry.record.title)}
        for index, title in enumerate(entry.record.alternate_titles):
            key = title_key(title)
            if key in seen:
                yield Finding(
                    entry, ("alternate_titles", index), "the entry has this title", "remove it"
                )
            seen.add(key)


def _content(title: str) -> frozenset[str]:
    return frozenset(word for word in title_key(title).split() if len(word) > 3)


# Words that most titles of this field share and that therefore relate nothing.
_COMMON_WORDS = (
    "diffusion model models pruning efficient image images generation video with from text "
    "towards toward fast training free sparse transformers transformer inference"
)
_COMMON = frozenset(_COMMON_WORDS.split())


@rule("shared-code", "error", "Lists often attach a repository to the wrong paper.")
def shared_code(corpus: Corpus) -> Iterator[Finding]:
    first: dict[str, Entry[Paper]] = {}
    for entry in corpus.papers:
        for index, code in enumerate(entry.record.code):
            if code.url is None:
                continue
            key = code.url.lower().rstrip("/").removesuffix(".git")
            other = first.setdefault(key, entry)
            a, b = entry.record, other.record
            if other is entry or related(a, b) or set(a.authors) & set(b.authors):
                continue
            if not (_content(a.title) & _content(b.title)) - _COMMON:
                yield Finding(
                    entry,
                    ("code", index, "url"),
                    f"{b.id}, which shares neither authors nor title, has the same repository",
                    "remove it from the wrong entry, or add a relation between them",
                )


def _address(url: str) -> str:
    return re.sub(r"^https://(?:www\.)?", "", url).rstrip("/").lower()


@rule("duplicate-tool", "error", "Two tools with one address or name are one tool.")
def duplicate_tool(corpus: Corpus) -> Iterator[Finding]:
    for name in ("url", "name"):

        def key(entry: Entry[Any], name: str = name) -> str:
            return _address(getattr(entry.record, name))

        for entry, first in repeated(corpus.tools, key):
            yield Finding(
                entry, (name,), f"{first.record.id} has the same {name}", "merge the two entries"
            )


@rule("duplicate-tutorial", "error", "Two tutorials with one address are one text.")
def duplicate_tutorial(corpus: Corpus) -> Iterator[Finding]:
    for entry, first in repeated(corpus.tutorials, lambda e: _address(e.record.url)):
        yield Finding(
            entry, ("url",), f"{first.record.id} has the same url", "merge the two entries"
        )


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


@rule("arxiv-digits", "error", "Ids have five digits after the point since January 2015.")
def arxiv_digits(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        arxiv = entry.record.arxiv
        if arxiv is not None and len(arxiv) != (10 if arxiv[:4] >= "1501" else 9):
            yield Finding(
                entry,
                ("arxiv",),
                f"{arxiv} has the wrong number of digits for its year",
                "write it in quotes, with every zero: '2412.00100'",
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


@rule("doi-of-arxiv", "error", "A DOI of arXiv repeats the arXiv id and hides the publisher's.")
def doi_of_arxiv(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        doi = entry.record.doi
        if doi is not None and doi.lower().startswith("10.48550/arxiv."):
            yield Finding(
                entry,
                ("doi",),
                f"{doi} is arXiv's own DOI",
                f"write arxiv: '{doi[15:]}' and leave doi to the publisher's",
            )


@rule("no-link", "error", "A reader must be able to open what an entry speaks of.")
def no_link(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        if entry.record.url is None:
            yield Finding(
                entry,
                ("id",),
                "has neither identifier nor address",
                "add arxiv, doi, openreview, page, project, code or hub",
            )
