"""What arXiv, Crossref, OpenReview and DBLP say about a work, in one form.

Readers take the bytes of a response, so that a recorded one does as well as a fresh one.
"""

from __future__ import annotations

import difflib
import html
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit
from xml.etree import ElementTree

from kb.http import Answer, Client, Failure, Policy, open_cache
from kb.schema import PublicationType, Track, title_key

ARXIV_BATCH = 100
_JSON = "application/json"

IdentifierKind: TypeAlias = Literal["arxiv", "doi", "openreview"]


class Unusable(Exception):
    """An identifier or a response cannot be used; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the services answer; tests put a local server here."""

    arxiv: str = "https://export.arxiv.org/api/query"
    crossref: str = "https://api.crossref.org/works"
    handles: str = "https://doi.org/api/handles"
    openreview: tuple[str, ...] = ("https://api2.openreview.net", "https://api.openreview.net")
    """Newer venues first; older ones answer on the second address alone."""
    dblp: str = "https://dblp.org"
    github: str = "https://api.github.com"
    github_pages: str = "https://github.com"
    hub: str = "https://huggingface.co/api"
    hub_pages: str = "https://huggingface.co"


def endpoints_at(base: str) -> Endpoints:
    """Every service on one server, each under its own path; for tests."""
    return Endpoints(
        arxiv=f"{base}/arxiv",
        crossref=f"{base}/crossref",
        handles=f"{base}/handles",
        openreview=(f"{base}/openreview2", f"{base}/openreview1"),
        dblp=f"{base}/dblp",
        github=f"{base}/github",
        github_pages=f"{base}/pages",
        hub=f"{base}/hub",
        hub_pages=f"{base}/hubpages",
    )


def connect(test_server: str | None = None) -> tuple[Client, Endpoints]:
    """A client with the cache of this machine, and the services; the caller closes the client.

    Args:
        test_server: `host:port` of a local server that stands for all services, over plain http and
            without a pace.

    Raises:
        OSError: when the cache folder cannot be written.
        sqlite3.Error: when the cache cannot be used.
    """
    token = os.environ.get("GITHUB_TOKEN")
    tokens = {"api.github.com": token} if token else {}
    if test_server is None:
        return Client(cache=open_cache(), tokens=tokens), Endpoints()
    policy = Policy(pace=0.0, paces={}, backoff=0.0, exempt=frozenset({test_server}))
    return Client(policy, cache=open_cache()), endpoints_at(f"http://{test_server}")


@dataclass(frozen=True, slots=True)
class Identifier:
    """A work's name at one service."""

    kind: IdentifierKind
    value: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


@dataclass(frozen=True, slots=True)
class Work:
    """One service's record of a work."""

    source: str
    """Reference in the form of `kb.schema.SourceRef`."""
    title: str
    authors: tuple[str, ...]
    year: int | None = None
    """Year of the record's first public version."""
    first_posted: str | None = None
    abstract: str = ""
    """For suggestions and comparison only; never stored."""
    arxiv: str | None = None
    doi: str | None = None
    openreview: str | None = None
    dblp: str | None = None
    publication: Mapping[str, Any] = field(default_factory=dict)
    """Plain data of `kb.schema.Publication`; empty when the record does not tell."""
    hints: tuple[str, ...] = ()
    """Remarks of the authors that a person must judge: comment, journal reference."""


# --------------------------------------------------------------------------- identifiers

_ARXIV = re.compile(r"(\d{2}(?:0[1-9]|1[0-2])\.\d{4,5})(?:v\d{1,2})?")
_DOI = re.compile(r"10\.\d{4,9}/[^\s?#]{1,100}")
_OPENREVIEW = re.compile(r"[A-Za-z0-9_-]{6,16}")


def identify(text: str) -> Identifier:
    """The identifier that `text`, an id or an address, names.

    Raises:
        Unusable: when it names none.
    """
    text = text.strip()
    if "://" in text:
        return _from_url(text)
    prefix, _, rest = text.partition(":")
    kind = prefix.lower() if rest else ""
    rest = rest.strip() if rest else text
    if kind in ("", "arxiv") and (match := _ARXIV.fullmatch(rest)):
        return Identifier("arxiv", match[1])
    if kind in ("", "doi") and _DOI.fullmatch(rest):
        return _from_doi(rest)
    # Without its prefix only the usual length is taken for an OpenReview id.
    if _OPENREVIEW.fullmatch(rest) and (kind == "openreview" or (not kind and len(rest) == 10)):
        return Identifier("openreview", rest)
    raise Unusable(
        f"{text[:80]!r} is no identifier; give an arXiv id such as 2305.10924, a DOI such as "
        "10.1145/3746027.3755081, openreview:ID, or the address of one"
    )


def _from_doi(doi: str) -> Identifier:
    match = re.fullmatch(r"10\.48550/arxiv\.(.+)", doi, re.IGNORECASE)
    if match and (number := _ARXIV.fullmatch(match[1])):
        return Identifier("arxiv", number[1])
    return Identifier("doi", doi)


def _from_url(text: str) -> Identifier:
    try:
        parts = urlsplit(text)
        host = (parts.hostname or "").removeprefix("www.").removeprefix("export.")
        query = parse_qs(parts.query)
    except ValueError:
        raise Unusable(f"{text[:80]!r} is no valid address") from None
    path = unquote(parts.path)
    if host == "arxiv.org" and (
        match := re.fullmatch(rf"/(?:abs|pdf|html)/{_ARXIV.pattern}(?:\.pdf)?/?", path)
    ):
        return Identifier("arxiv", match[1])
    if host in ("doi.org", "dx.doi.org") and _DOI.fullmatch(path[1:]):
        return _from_doi(path[1:])
    found = query.get("id", [""])[0]
    if host == "openreview.net" and _OPENREVIEW.fullmatch(found):
        return Identifier("openreview", found)
    raise Unusable(
        f"{text[:80]!r} names no paper; give an address at arxiv.org, doi.org or openreview.net"
    )


# --------------------------------------------------------------------------- text


def clean(text: object) -> str:
    """Text on one line: no markup, no control characters, single spaces, composed accents."""
    plain = re.sub(r"</?[A-Za-z][^<>]{0,200}>", "", html.unescape(str(text or "")))
    plain = unicodedata.normalize("NFC", plain)
    return " ".join("".join(c if c.isprintable() else " " for c in plain).split())


def title_likeness(a: str, b: str) -> float:
    """1 for equal titles, 0 for unrelated ones; case and punctuation do not count."""
    left, right = title_key(a), title_key(b)
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    return matcher.ratio() if matcher.quick_ratio() > 0.7 else matcher.quick_ratio()


def _family_name(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name)
    words = "".join(c for c in plain if not unicodedata.combining(c)).casefold().split()
    return re.sub(r"\W", "", words[-1]) if words else ""


def shared_authors(a: Sequence[str], b: Sequence[str]) -> int:
    """How many family names two lists of authors share."""
    return len({_family_name(n) for n in a} & {_family_name(n) for n in b} - {""})


def authors_agree(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether at least half of the shorter list, and two where there are two, is shared."""
    shorter = min(len(set(a)), len(set(b)))
    return shorter > 0 and shared_authors(a, b) >= max(min(2, shorter), (shorter + 1) // 2)


# --------------------------------------------------------------------------- venues

_VENUES: tuple[tuple[str, str], ...] = (
    (r"neural information processing systems|\b(?:neurips|nips)\b", "NeurIPS"),
    (r"international conference on learning representations|\biclr\b", "ICLR"),
    (r"international conference on machine learning|\bicml\b", "ICML"),
    (r"computer vision and pattern recognition|\bcvprw?\b", "CVPR"),
    (r"winter conference on applications of computer vision|\bwacvw?\b", "WACV"),
    (r"asian conference on computer vision|\baccv\b", "ACCV"),
    (r"european conference on computer vision|computer vision . eccv|\beccvw?\b", "ECCV"),
    (r"international conference on computer vision|\biccvw?\b", "ICCV"),
    (r"british machine vision conference|\bbmvc\b", "BMVC"),
    (r"conference on multimedia(?! and expo)|\bacm (?:mm|multimedia)\b", "ACM MM"),
    (r"multimedia and expo|\bicme\b", "ICME"),
    (r"aaai conference on artificial intelligence|\baaai\b", "AAAI"),
    (r"joint conference on artificial intelligence|\bijcai\b", "IJCAI"),
    (r"transactions on machine learning research|\btmlr\b|trans\. mach\. learn\. res", "TMLR"),
    (r"acoustics, speech,? and signal processing|\bicassp\b", "ICASSP"),
    (r"design automation conference|\bdac\b", "DAC"),
    (r"machine learning and systems|\bmlsys\b", "MLSys"),
    (r"empirical methods in natural language processing|\bemnlp\b", "EMNLP"),
    (r"conference on language modeling|\bcolm\b", "COLM"),
    (r"conference on robot learning|\bcorl\b", "CoRL"),
    (r"\bsiggraph asia\b", "SIGGRAPH Asia"),
    (r"\bsiggraph\b", "SIGGRAPH"),
    (r"transactions on pattern analysis and machine intelligence|\btpami\b", "TPAMI"),
    (r"international journal of computer vision|\bijcv\b|int\. j\. comput\. vis\.", "IJCV"),
)


def venue_name(text: str) -> str:
    """The short name of a venue, or `text` as it is when the venue is not in our table."""
    lowered = text.casefold()
    return next((name for pattern, name in _VENUES if re.search(pattern, lowered)), clean(text))


def _is_workshop(text: str) -> bool:
    return re.search(r"workshop|\b(?:cvprw|iccvw|eccvw|wacvw)\b", text.casefold()) is not None


# --------------------------------------------------------------------------- arXiv

_ATOM = {"a": "http://www.w3.org/2005/Atom", "x": "http://arxiv.org/schemas/atom"}


def read_arxiv(data: bytes) -> tuple[Work, ...]:
    """The works of an Atom feed of the arXiv API.

    Raises:
        Unusable: when it is no such feed, or the feed reports an error.
    """
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise Unusable("the arXiv response declares entities, which no feed of arXiv does")
    try:
        feed = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise Unusable(f"the arXiv response is not valid XML: {error}") from None
    if feed.tag != f"{{{_ATOM['a']}}}feed":
        raise Unusable("the XML is no Atom feed of the arXiv API")
    works = []
    for entry in feed.findall("a:entry", _ATOM):
        address = clean(entry.findtext("a:id", "", _ATOM))
        if "/api/errors" in address:
            raise Unusable(f"arXiv answers: {clean(entry.findtext('a:summary', '', _ATOM))[:200]}")
        match = re.search(r"/abs/(\d{4}\.\d{4,5})(?:v(\d+))?$", address)
        if match is not None:
            works.append(_arxiv_work(entry, match[1], int(match[2] or 1)))
    return tuple(works)


def _arxiv_work(entry: ElementTree.Element, number: str, version: int) -> Work:
    def text(path: str) -> str:
        return clean(entry.findtext(path, "", _ATOM))

    authors = (clean(a.findtext("a:name", "", _ATOM)) for a in entry.findall("a:author", _ATOM))
    posted = text("a:published")[:10]
    hints = [f"arXiv comment: {c}" for c in [text("x:comment")] if c]
    hints += [f"arXiv journal reference: {j}" for j in [text("x:journal_ref")] if j]
    doi = text("x:doi")
    return Work(
        source=f"arxiv:{number}v{version}",
        title=text("a:title"),
        authors=tuple(a for a in authors if a),
        year=2000 + int(number[:2]),
        first_posted=posted if re.fullmatch(r"\d{4}-\d{2}-\d{2}", posted) else None,
        abstract=text("a:summary"),
        arxiv=number,
        doi=doi if _DOI.fullmatch(doi) else None,
        publication={"type": PublicationType.PREPRINT.value},
        hints=tuple(hints),
    )


# --------------------------------------------------------------------------- Crossref

_CROSSREF_TYPES = {
    "proceedings-article": PublicationType.CONFERENCE,
    "book-chapter": PublicationType.CONFERENCE,
    "journal-article": PublicationType.JOURNAL,
    "posted-content": PublicationType.PREPRINT,
    "report": PublicationType.TECHNICAL_REPORT,
}


def read_crossref(message: object) -> Work:
    """The work of one Crossref record, the `message` of `/works/DOI` or an item of a search.

    Raises:
        Unusable: when it is no such record.
    """
    record = _mapping(message, "Crossref")
    doi, title = clean(record.get("DOI")), clean(_first(record.get("title")))
    if not _DOI.fullmatch(doi) or not title:
        raise Unusable("the Crossref record has no DOI or no title")
    subtitle = clean(_first(record.get("subtitle")))
    people = [p for p in _list(record.get("author")) if isinstance(p, Mapping)]
    names = (
        clean(f"{p.get('given') or ''} {p.get('family') or p.get('name') or ''}") for p in people
    )
    year = next((y for k in ("published", "issued", "posted") if (y := _year(record.get(k)))), None)
    event = record.get("event")
    where = clean(_first(record.get("container-title")))
    named = clean(event.get("name")) if isinstance(event, Mapping) else ""
    kind = _CROSSREF_TYPES.get(str(record.get("type")))
    publication: dict[str, Any] = {}
    if kind is PublicationType.PREPRINT:
        publication = {"type": kind.value}
    elif kind is not None and where:
        venue = venue_name(where)
        venue = venue_name(named) if venue == where and named else venue
        workshop = _is_workshop(f"{where} {named}")
        publication = {
            "type": (PublicationType.WORKSHOP if workshop else kind).value,
            "venue": venue[:200],
            # An edition is named in the proceedings' title; the date of print may be a year later.
            "year": _edition(f"{where} {named}") or year,
            "track": Track.WORKSHOP.value if workshop else None,
            "pages": clean(record.get("page") or record.get("article-number")) or None,
            "evidence": f"doi:{doi}",
        }
    return Work(
        source=f"doi:{doi}",
        title=f"{title}: {subtitle}" if subtitle else title,
        authors=tuple(n for n in names if n),
        year=year,
        abstract=clean(record.get("abstract")),
        doi=doi,
        publication={k: v for k, v in publication.items() if v is not None},
    )


def _edition(text: str) -> int | None:
    years = {int(y) for y in re.findall(r"\b(20[0-4]\d)\b", text)}
    return years.pop() if len(years) == 1 else None


def _year(value: object) -> int | None:
    parts = value.get("date-parts") if isinstance(value, Mapping) else None
    first = _first(_first(parts))
    return first if isinstance(first, int) and 1990 <= first <= 2100 else None


# --------------------------------------------------------------------------- OpenReview


def read_openreview(note: object) -> Work:
    """The work of an OpenReview note, of API 2 or of the older one.

    Raises:
        Unusable: when it is no submission.
    """
    record = _mapping(note, "OpenReview")
    content = _mapping(record.get("content"), "OpenReview")

    def value(name: str) -> Any:
        found = content.get(name)
        return found.get("value") if isinstance(found, Mapping) else found

    forum, title = clean(record.get("forum") or record.get("id")), clean(value("title"))
    if not _OPENREVIEW.fullmatch(forum) or not title:
        raise Unusable("the OpenReview note is no submission: it has no forum or no title")
    year = next((y for k in ("odate", "pdate", "cdate") if (y := _year_of(record.get(k)))), None)
    return Work(
        source=f"openreview:{forum}",
        title=title,
        authors=tuple(n for a in _list(value("authors")) if (n := clean(a))),
        year=year,
        abstract=clean(value("abstract")),
        openreview=forum,
        publication=_openreview_publication(
            clean(value("venue")),
            clean(value("venueid")),
            f"openreview:{forum}",
            _year_of(record.get("pdate")),
        ),
    )


def _year_of(milliseconds: object) -> int | None:
    if not isinstance(milliseconds, (int, float)) or not 0 < milliseconds < 4e12:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).year


def _openreview_publication(
    venue: str, group: str, evidence: str, accepted: int | None
) -> dict[str, Any]:
    both = f"{venue} {group}"
    if not both.strip():
        return {}
    year = _edition(both)
    name = venue_name(re.sub(r"[./_]", " ", both))
    name = name if name in {short for _, short in _VENUES} else clean(group.split("/")[0] or venue)
    result: dict[str, Any] = {"venue": name[:200], "year": year, "evidence": evidence}
    if re.search(r"withdrawn|reject|submitted|under review|submission", both.casefold()):
        result |= {"type": PublicationType.SUBMISSION.value, "note": venue or None}
    elif _is_workshop(both):
        workshop = group.split("/Workshop/")[-1] if "/Workshop/" in group else venue
        result |= {
            "type": PublicationType.WORKSHOP.value,
            "track": Track.WORKSHOP.value,
            "workshop": clean(workshop.replace("_", " ")) or None,
        }
    elif name == "TMLR":
        # A journal without editions: the year is that of acceptance.
        result |= {"type": PublicationType.JOURNAL.value, "year": year or accepted}
    else:
        datasets = "datasets" in both.casefold()
        track = Track.DATASETS if datasets else Track.MAIN if "/Conference" in group else None
        result |= {
            "type": PublicationType.CONFERENCE.value,
            "track": track.value if track else None,
        }
    return {k: v for k, v in result.items() if v is not None}


# --------------------------------------------------------------------------- DBLP


def read_dblp(data: object) -> tuple[Work, ...]:
    """The works of a DBLP search in JSON.

    Raises:
        Unusable: when it is no such answer.
    """
    hits = _mapping(_mapping(_mapping(data, "DBLP").get("result"), "DBLP").get("hits"), "DBLP")
    works = []
    for hit in _list(hits.get("hit")):
        info = _mapping(_mapping(hit, "DBLP").get("info"), "DBLP")
        people = info.get("authors")
        listed = people.get("author") if isinstance(people, Mapping) else []
        # A single author is not a list there, and namesakes carry a number.
        listed = [listed] if isinstance(listed, Mapping) else _list(listed)
        names = (clean(p.get("text") if isinstance(p, Mapping) else p) for p in listed)
        key, title = clean(info.get("key")), clean(info.get("title")).removesuffix(".")
        if not key or not title:
            continue
        year = str(info.get("year") or "")
        doi = clean(info.get("doi"))
        works.append(
            Work(
                source=f"dblp:{key}",
                title=title,
                authors=tuple(re.sub(r" \d{4}$", "", n) for n in names if n),
                year=int(year) if re.fullmatch(r"20\d\d|199\d", year) else None,
                doi=doi if _DOI.fullmatch(doi) else None,
                dblp=key if re.match(r"(?:conf|journals|books)/", key) else None,
                publication=_dblp_publication(info, key, year),
            )
        )
    return tuple(works)


def _dblp_publication(info: Mapping[str, Any], key: str, year: str) -> dict[str, Any]:
    venue = clean(_first(info.get("venue")))
    if key.startswith("journals/corr/") or "Informal" in str(info.get("type")):
        return {"type": PublicationType.PREPRINT.value}
    kind = PublicationType.JOURNAL if key.startswith("journals/") else PublicationType.CONFERENCE
    if not venue or not key.startswith(("journals/", "conf/")):
        return {}
    workshop = _is_workshop(venue)
    result = {
        "type": (PublicationType.WORKSHOP if workshop else kind).value,
        "venue": venue_name(venue)[:200],
        "year": int(year) if year.isdecimal() else None,
        "track": Track.WORKSHOP.value if workshop else None,
        "pages": clean(info.get("pages")) or None,
        "evidence": f"dblp:{key}",
    }
    return {k: v for k, v in result.items() if v is not None}


# --------------------------------------------------------------------------- plain data


def _mapping(value: object, service: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Unusable(f"the response has not the form of {service}'s")
    return value


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _first(value: object) -> Any:
    return next(iter(_list(value)), None) if not isinstance(value, str) else value


# --------------------------------------------------------------------------- responses


def read(answer: Answer) -> tuple[Work, ...]:
    """The works of any response that is known here: arXiv, Crossref, OpenReview or DBLP.

    Raises:
        Unusable: when it is none of them.
    """
    if answer.body.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<"):
        return read_arxiv(answer.body)
    try:
        data = answer.json()
    except Failure:
        raise Unusable("the response is neither XML nor JSON in UTF-8") from None
    if isinstance(data, Mapping) and "message" in data:
        message = _mapping(data["message"], "Crossref")
        items = message.get("items", [message])
        return tuple(read_crossref(item) for item in _list(items))
    if isinstance(data, Mapping) and "notes" in data:
        return tuple(read_openreview(note) for note in _list(data["notes"]))
    if isinstance(data, Mapping) and "result" in data:
        return read_dblp(data)
    raise Unusable("the JSON is no response of Crossref, OpenReview or DBLP")


def recorded(data: bytes, wanted: Identifier | None) -> tuple[Work, ...]:
    """The wanted work of a recorded response, or its only one.

    Raises:
        Unusable: when there is no such work, or several and none is named.
    """
    works = read(Answer("recorded", 200, {}, data))
    if wanted is not None:
        works = tuple(w for w in works if _names(w, wanted))
    if not works:
        raise Unusable(f"the response holds no record of {wanted}" if wanted else "it is empty")
    if len(works) > 1 and wanted is None:
        raise Unusable(f"the response holds {len(works)} works; name one of them by its id")
    return works[:1]


def _names(work: Work, wanted: Identifier) -> bool:
    found = {"arxiv": work.arxiv, "doi": work.doi, "openreview": work.openreview}[wanted.kind]
    return found is not None and found.casefold() == wanted.value.casefold()


# --------------------------------------------------------------------------- requests


def arxiv_url(numbers: Sequence[str], endpoints: Endpoints) -> str:
    """Address of one batch.

    Raises:
        ValueError: for more than `ARXIV_BATCH` ids.
    """
    if len(numbers) > ARXIV_BATCH:
        raise ValueError(f"arXiv is asked for at most {ARXIV_BATCH} ids at once")
    query = {"id_list": ",".join(numbers), "max_results": str(len(numbers))}
    return f"{endpoints.arxiv}?{urlencode(query, safe=',')}"


def crossref_url(doi: str, endpoints: Endpoints) -> str:
    """Address of one record."""
    return f"{endpoints.crossref}/{quote(doi, safe='')}"


def answered(answer: Answer, what: str) -> Answer:
    """`answer` when it brings something.

    Raises:
        Unusable: when the service does not know `what`.
        Failure: when it did not say.
    """
    if answer.status == 200:
        return answer
    host = urlsplit(answer.url).hostname
    if answer.status in (404, 410):
        raise Unusable(f"{host} does not know {what}")
    raise Failure("broken", f"{host} answers with status {answer.status}; try again later")


def fetch(identifier: Identifier, client: Client, endpoints: Endpoints) -> tuple[Work, ...]:
    """The records of a work: the one asked for, then the published one that it names, if any.

    Raises:
        Unusable: when the service does not know the identifier or sends something else.
        Failure: when it cannot be asked now.
    """
    work = _FETCH[identifier.kind](identifier, client, endpoints)
    if identifier.kind != "arxiv" or work.doi is None:
        return (work,)
    # arXiv repeats the DOI that the authors gave; what was published there, Crossref knows.
    try:
        published = _fetch_crossref(Identifier("doi", work.doi), client, endpoints)
    except (Unusable, Failure) as error:
        return (replace(work, hints=(*work.hints, f"DOI {work.doi} was not looked up: {error}")),)
    if title_likeness(work.title, published.title) < 0.75 and not authors_agree(
        work.authors, published.authors
    ):
        hint = f"DOI {work.doi}, which arXiv names, belongs to {published.title!r}"
        return (replace(work, doi=None, hints=(*work.hints, hint)),)
    return (work, published)


def _fetch_arxiv(identifier: Identifier, client: Client, endpoints: Endpoints) -> Work:
    answer = client.ask(arxiv_url([identifier.value], endpoints), accept="application/atom+xml")
    for work in read_arxiv(answered(answer, str(identifier)).body):
        if work.arxiv == identifier.value and work.title:
            return work
    raise Unusable(f"arXiv does not know {identifier.value}")


def _fetch_crossref(identifier: Identifier, client: Client, endpoints: Endpoints) -> Work:
    answer = client.ask(crossref_url(identifier.value, endpoints), accept=_JSON)
    data = answered(answer, str(identifier)).json()
    return read_crossref(_mapping(data, "Crossref").get("message"))


def _fetch_openreview(identifier: Identifier, client: Client, endpoints: Endpoints) -> Work:
    trouble: Unusable | Failure = Unusable(f"OpenReview does not know {identifier.value}")
    for base in endpoints.openreview:
        try:
            answer = client.ask(f"{base}/notes?{urlencode({'id': identifier.value})}", accept=_JSON)
            data = _mapping(answered(answer, str(identifier)).json(), "OpenReview")
        except (Unusable, Failure) as error:
            trouble = error if isinstance(error, Failure) else trouble
            continue
        for note in _list(data.get("notes")):
            return read_openreview(note)
    raise trouble


_FETCH = {"arxiv": _fetch_arxiv, "doi": _fetch_crossref, "openreview": _fetch_openreview}
