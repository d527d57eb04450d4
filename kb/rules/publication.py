"""Where and when a work appeared."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator

from kb.load import Corpus, FieldPath
from kb.rules.registry import Finding, rule
from kb.schema import Kind, Paper, PublicationType, Tool, Track, Tutorial

_UNPUBLISHED = frozenset({PublicationType.PREPRINT, PublicationType.RELEASE})


@rule("publication-evidence", "error", "Lists name wrong venues; ours are confirmed.")
def publication_evidence(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        publication = entry.record.publication
        if publication.type not in _UNPUBLISHED and publication.evidence is None:
            yield Finding(
                entry,
                ("publication",),
                f"{publication.type.value} without evidence",
                "add publication.evidence: where the acceptance was read",
            )


_LIST = re.compile(
    r"^(?:github:|https://github\.com/)[\w.-]*/[\w.-]*(?:awesome|papers-on|-survey|paper-?list)",
    re.IGNORECASE,
)


@rule("evidence-list", "warning", "Paper lists copy venues from each other; a reader must know.")
def evidence_list(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        publication = entry.record.publication
        if publication.note is None and _LIST.match(publication.evidence or ""):
            yield Finding(
                entry,
                ("publication", "evidence"),
                "the venue rests on a paper list alone",
                "confirm it at the venue, or say so in publication.note",
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


@rule("preprint-venue", "error", "What has a venue is no preprint, and what has none is one.")
def preprint_venue(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        publication = entry.record.publication
        if publication.type is not PublicationType.PREPRINT:
            continue
        for name in ("venue", "track", "workshop", "pages"):
            if getattr(publication, name) is not None:
                yield Finding(
                    entry,
                    ("publication", name),
                    f"a preprint has a {name}",
                    "name the type of publication with its evidence, or remove the key",
                )
                break


@rule("release-kind", "error", "A release has no paper, and a paper is no release.")
def release_kind(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        released = entry.record.publication.type is PublicationType.RELEASE
        if released != (entry.record.kind is not Kind.PAPER):
            yield Finding(
                entry,
                ("publication", "type"),
                f"a {entry.record.kind.value} of type {entry.record.publication.type.value}",
                "kind paper needs another type; model-release and software need type release",
            )


_VENUE = re.compile(r"(?:19|20)\d\d|'\d\d\b|workshop|arxiv|\b(?:oral|spotlight|poster)\b", re.I)


@rule("venue-form", "error", "One venue has one name, or tables split it; the year is a field.")
def venue_form(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        match = _VENUE.search(entry.record.publication.venue or "")
        if match:
            yield Finding(
                entry,
                ("publication", "venue"),
                f"the venue holds {match.group()!r}",
                "give the short name alone: NeurIPS; year, track and workshop are own fields",
            )


# Remainder of the year by two, for conferences that have never changed their rhythm since 2010.
_PARITY = {"ECCV": 0, "ACCV": 0, "ICCV": 1}
_FIRST = {"ICLR": 2013, "TMLR": 2022, "COLM": 2024, "MLSYS": 2018, "CORL": 2017}


@rule("venue-year", "error", "ECCV is held in even years and ICCV in odd ones, and so on.")
def venue_year(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        publication = entry.record.publication
        venue, year = (publication.venue or "").upper(), publication.year
        if year is None:
            continue
        wrong = _PARITY.get(venue, year % 2) != year % 2 or year < _FIRST.get(venue, year)
        if wrong:
            yield Finding(
                entry,
                ("publication", "year"),
                f"there was no {publication.venue} in {year}",
                "look the year up at the venue",
            )


@rule("workshop-track", "error", "A workshop paper shown as main track misleads the reader.")
def workshop_track(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        publication = entry.record.publication
        is_workshop = publication.type is PublicationType.WORKSHOP
        named = publication.workshop is not None or publication.track is Track.WORKSHOP
        if is_workshop and publication.track not in (None, Track.WORKSHOP):
            message = f"a workshop paper in track {publication.track.value}"
        elif named and not is_workshop and publication.type is not PublicationType.SUBMISSION:
            message = f"a workshop, but the type is {publication.type.value}"
        else:
            continue
        yield Finding(
            entry,
            ("publication", "type"),
            message,
            "write type: workshop and track: workshop, or name the main track",
        )


@rule("publication-early", "error", "Nothing is published more than a year before it is posted.")
def publication_early(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        posted, year = entry.record.posted, entry.record.publication.year
        if posted is not None and year is not None and year < posted[0] - 1:
            yield Finding(
                entry,
                ("publication", "year"),
                f"published in {year}, but posted on arXiv in {posted[0]}",
                "check publication.year and arxiv; one of them belongs to another paper",
            )


@rule("publication-future", "error", "Venues beyond next year have not decided yet.")
def publication_future(corpus: Corpus) -> Iterator[Finding]:
    latest = datetime.date.today().year + 1
    for entry in corpus.papers:
        year = entry.record.publication.year
        if year is not None and year > latest:
            yield Finding(
                entry,
                ("publication", "year"),
                f"{year} lies in the future",
                "check the year",
            )


_DBLP = {
    "nips": "NeurIPS",
    "iclr": "ICLR",
    "icml": "ICML",
    "cvpr": "CVPR",
    "iccv": "ICCV",
    "eccv": "ECCV",
    "wacv": "WACV",
    "aaai": "AAAI",
    "ijcai": "IJCAI",
    "icmcs": "ICME",
    "tmlr": "TMLR",
}


@rule("dblp-venue", "error", "The DBLP key names the venue; if they differ, one is wrong.")
def dblp_venue(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        key, venue = entry.record.dblp, entry.record.publication.venue
        expected = _DBLP.get(key.split("/")[1]) if key else None
        if expected is not None and venue is not None and venue.upper() != expected.upper():
            yield Finding(
                entry,
                ("dblp",),
                f"{key} is a key of {expected}, not of {venue}",
                "compare the record on DBLP with publication.venue",
            )


def _dates(record: Paper | Tool | Tutorial) -> Iterator[tuple[FieldPath, str]]:
    yield ("curation", "date"), record.curation.date
    if isinstance(record, Paper):
        if record.first_posted is not None:
            yield ("first_posted",), record.first_posted
        for index, code in enumerate(record.code):
            if code.checked is not None:
                yield ("code", index, "checked"), code.checked


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


@rule("date-invalid", "error", "A day that is not in the calendar was mistyped.")
def date_invalid(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.entries:
        for path, text in _dates(entry.record):
            if _date(text) is None:
                yield Finding(entry, path, f"there is no day {text}", "write year-month-day")


@rule("date-future", "error", "Nothing was checked or posted on a day to come.")
def date_future(corpus: Corpus) -> Iterator[Finding]:
    # Somewhere on earth it is already tomorrow.
    latest = datetime.date.today() + datetime.timedelta(days=1)
    for entry in corpus.entries:
        for path, text in _dates(entry.record):
            day = _date(text)
            if day is not None and day > latest:
                yield Finding(entry, path, f"{text} lies in the future", "check the date")


# The first paper of the field in arXiv's sense: denoising diffusion on images, June 2020.
_FIELD_BEGAN = datetime.date(2020, 6, 1)


@rule("date-early", "error", "Nobody can have checked an entry before its paper existed.")
def date_early(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.entries:
        posted = entry.record.posted if isinstance(entry.record, Paper) else None
        begin = _FIELD_BEGAN
        if posted is not None and 1 <= posted[1] <= 12:
            # A version is submitted some days before the month in which its id is given out.
            begin = datetime.date(posted[0], posted[1], 1) - datetime.timedelta(days=31)
        for path, text in _dates(entry.record):
            day = _date(text)
            if day is not None and day < begin and path != ("first_posted",):
                yield Finding(
                    entry, path, f"{text} is before the work was public", "check date and arxiv"
                )


@rule("first-posted", "error", "An arXiv id is given out in the month of the first version.")
def first_posted(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        posted = entry.record.posted
        day = _date(entry.record.first_posted or "")
        if posted is None or day is None:
            continue
        # Submissions may wait in moderation, so the id can be some months younger, never older.
        delay = (posted[0] - day.year) * 12 + posted[1] - day.month
        if not 0 <= delay <= 3:
            yield Finding(
                entry,
                ("first_posted",),
                f"{entry.record.first_posted} disagrees with arXiv id {entry.record.arxiv}",
                "give the date of version 1 on the arXiv page",
            )
