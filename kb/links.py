"""Whether what papers.yaml points to is still there.

Identifiers are asked for at the services' APIs and compared with title and authors; code and
project pages are asked for over HTTP. Only a clear "not there" counts against a link, and only
after it was heard on several days: a refusal, an overload or a timeout says nothing.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from kb.fetch import (
    ARXIV_BATCH,
    Endpoints,
    Unusable,
    Work,
    arxiv_url,
    authors_agree,
    crossref_url,
    read,
    read_arxiv,
    title_likeness,
)
from kb.http import Answer, Client, Failure, Refused, host_of
from kb.load import Corpus, FieldPath, field_name
from kb.schema import CodeStatus, Paper, Tool, ToolStatus, Tutorial

_JSON = "application/json"
_GONE = frozenset({404, 410})
_PERMANENT = frozenset({301, 308})
_OVERLOADED = frozenset({429, 502, 503, 504})
FIRST_BYTES = 1024
"""How much of a page is read where HEAD is not enough."""


class Kind(StrEnum):
    """How a link is checked."""

    ARXIV = "arxiv"
    DOI = "doi"
    OPENREVIEW = "openreview"
    DBLP = "dblp"
    HUB = "hub"
    GITHUB = "github"
    WEB = "web"


class Verdict(StrEnum):
    """What is known about a link."""

    OK = "ok"
    MOVED = "moved"
    ARCHIVED = "archived"
    EMPTY = "empty"
    RETITLED = "retitled"
    MISMATCH = "mismatch"
    FAILING = "failing"
    DEAD = "dead"
    UNKNOWN = "unknown"
    REFUSED = "refused"


RED = frozenset({Verdict.DEAD, Verdict.MISMATCH, Verdict.REFUSED})
"""Verdicts that somebody must act on."""


@dataclass(frozen=True, slots=True)
class Use:
    """A place in papers.yaml."""

    entry: str
    field: str
    line: int


@dataclass(frozen=True, slots=True)
class Link:
    """Something outside, and where it is used."""

    kind: Kind
    target: str
    """Identifier, or address for code and pages."""
    uses: tuple[Use, ...] = ()
    titles: tuple[str, ...] = ()
    """What a work with this identifier should be called."""
    authors: tuple[str, ...] = ()
    expected_empty: bool = False
    """The entry already says that the repository is empty or only a stub."""
    expected_archived: bool = False
    """The entry already says that the repository is read-only."""

    @property
    def key(self) -> str:
        """Name in the memory."""
        return f"{self.kind}:{self.target}"


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one link."""

    link: Link
    verdict: Verdict
    detail: str = ""
    target: str | None = None
    """What to write instead."""
    since: str | None = None
    """First day on which it failed or could not be told."""

    @property
    def red(self) -> bool:
        return self.verdict in RED

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {
            "kind": self.link.kind.value,
            "link": self.link.target,
            "verdict": self.verdict.value,
            "red": self.red,
            "detail": self.detail,
            "target": self.target,
            "since": self.since,
            "uses": [{"entry": u.entry, "field": u.field, "line": u.line} for u in self.link.uses],
        }


# --------------------------------------------------------------------------- what is linked


def _repository(url: str) -> str | None:
    """`owner/name` of an address at GitHub, or None."""
    parts = urlsplit(url)
    match = re.fullmatch(r"/([\w.-]+)/([\w.-]+?)(?:\.git)?(?:/.*)?", parts.path)
    if (parts.hostname or "") not in ("github.com", "www.github.com") or match is None:
        return None
    # Pages of the service itself stand where an owner would.
    special = {"orgs", "topics", "features", "collections", "sponsors", "marketplace", "settings"}
    return None if match[1] in special else f"{match[1]}/{match[2]}"


def _of_url(url: str) -> Iterator[tuple[Kind, str]]:
    try:
        name = _repository(url)
        path = urlsplit(url).path.strip("/").removesuffix(".git")
    except ValueError:
        name, path = None, ""
    if name is None or path != name:
        yield Kind.WEB, url
    if name is not None:
        yield Kind.GITHUB, name


def links(corpus: Corpus, sources: bool = False) -> tuple[Link, ...]:
    """Every link of the valid entries, each once, in order of first use.

    Args:
        corpus: What was read.
        sources: Also the addresses and repositories that facts were read from.
    """
    found: dict[str, Link] = {}

    def add(entry: Any, path: FieldPath, kind: Kind, target: str, **known: Any) -> None:
        use = Use(entry.record.id, field_name(path), corpus.line(entry, path))
        link = Link(kind, target, (use,), **known)
        old = found.get(link.key)
        found[link.key] = link if old is None else _merged(old, link)

    for paper in corpus.papers:
        for path, kind, target, known in _paper_links(paper.record):
            add(paper, path, kind, target, **known)
    others: Sequence[Any] = (*corpus.tools, *corpus.tutorials)
    for other in others:
        archived = isinstance(other.record, Tool) and other.record.status is ToolStatus.ARCHIVED
        for path, url in _other_urls(other.record):
            for kind, target in _of_url(url):
                add(other, path, kind, target, expected_archived=archived)
    if sources:
        every: Sequence[Any] = corpus.entries
        for any_entry in every:
            for i, source in enumerate(any_entry.record.sources):
                for kind, target in _of_source(source):
                    add(any_entry, ("sources", i), kind, target)
    return tuple(found.values())


def _merged(old: Link, new: Link) -> Link:
    return replace(
        old,
        uses=old.uses + new.uses,
        titles=old.titles + new.titles,
        authors=old.authors or new.authors,
        expected_empty=old.expected_empty or new.expected_empty,
        expected_archived=old.expected_archived or new.expected_archived,
    )


def _paper_links(paper: Paper) -> Iterator[tuple[FieldPath, Kind, str, dict[str, Any]]]:
    known = {"titles": (paper.title, *paper.alternate_titles), "authors": paper.authors}
    for kind in (Kind.ARXIV, Kind.DOI, Kind.OPENREVIEW):
        if (value := getattr(paper, kind.value)) is not None:
            yield (kind.value,), kind, value, known
    if paper.dblp is not None:
        yield ("dblp",), Kind.DBLP, paper.dblp, {}
    for i, name in enumerate(paper.hub):
        yield ("hub", i), Kind.HUB, name, {}
    for name in ("page", "project"):
        if (url := getattr(paper, name)) is not None:
            for kind, target in _of_url(url):
                yield (name,), kind, target, {}
    for i, code in enumerate(paper.code):
        if code.url is None or code.status is CodeStatus.GONE:
            continue
        bare = code.status in (CodeStatus.EMPTY, CodeStatus.STUB)
        for kind, target in _of_url(code.url):
            yield ("code", i, "url"), kind, target, {"expected_empty": bare}


def _other_urls(record: Tool | Tutorial) -> Iterator[tuple[FieldPath, str]]:
    if not isinstance(record, Tool) or record.status is not ToolStatus.REMOVED:
        yield ("url",), record.url
    if isinstance(record, Tool) and record.docs is not None:
        yield ("docs",), record.docs


def _of_source(source: str) -> Iterator[tuple[Kind, str]]:
    reference = source.split(" ", 1)[0]
    if reference.startswith("https://"):
        yield from _of_url(reference)
    elif match := re.fullmatch(r"github:([\w.-]+/[\w.-]+?)(?:@[0-9a-f]+)?", reference):
        yield Kind.GITHUB, match[1]


# --------------------------------------------------------------------------- memory


@dataclass(frozen=True, slots=True)
class Patience:
    """When a link that is not there counts as dead."""

    failures: int = 3
    """Different days on which it was not there."""
    days: int = 7
    """Least time between the first and the last of them."""


@dataclass
class _Past:
    failed: list[date] = field(default_factory=list)
    untold: date | None = None


class Memory:
    """What was heard about links on earlier days: a file of JSON lines that only grows.

    Only days on which something was wrong, and the day on which it was well again, are written. A
    last line that a killed run left unfinished is cut before the next one is added.

    Raises:
        Unusable: when a line is broken.
        OSError: when the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._past: dict[str, _Past] = {}
        self._new: list[dict[str, str]] = []
        if not path.exists():
            return
        # What follows the last line end was never finished.
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                self._take(record["link"], date.fromisoformat(record["day"]), record["state"])
            except (ValueError, KeyError, TypeError, RecursionError):
                text = f"{path.name}:{number}: is no record of a link; delete this line"
                raise Unusable(text) from None

    def _take(self, key: str, day: date, state: str) -> None:
        past = self._past.setdefault(key, _Past())
        if state == "gone":
            past.untold = None
            if day not in past.failed:
                past.failed.append(day)
        elif state == "untold":
            past.untold = past.untold or day
        elif state == "well":
            self._past.pop(key)
        else:
            raise ValueError(state)

    def judge(self, finding: Finding, day: date, patience: Patience) -> Finding:
        """`finding` in the light of earlier days; remembers today."""
        key = finding.link.key
        past = self._past.get(key, _Past())
        if finding.verdict is Verdict.FAILING:
            if day not in past.failed:
                self._note(key, day, "gone")
            failed = sorted({*past.failed, day})
            span = (failed[-1] - failed[0]).days
            dead = len(failed) >= patience.failures and span >= patience.days
            verdict = Verdict.DEAD if dead else Verdict.FAILING
            return replace(finding, verdict=verdict, since=failed[0].isoformat())
        if finding.verdict is Verdict.UNKNOWN:
            if past.untold is None:
                self._note(key, day, "untold")
            return replace(finding, since=(past.untold or day).isoformat())
        if key in self._past:
            self._note(key, day, "well")
        return finding

    def _note(self, key: str, day: date, state: str) -> None:
        self._take(key, day, state)
        self._new.append({"link": key, "day": day.isoformat(), "state": state})

    def save(self) -> None:
        """Append what is new and wait until it is on disk."""
        if not self._new:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(r, sort_keys=True) + "\n" for r in self._new)
        with self._path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.seek(0, os.SEEK_END)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        self._new.clear()


# --------------------------------------------------------------------------- one link


def _untold(link: Link, answer: Answer) -> Finding:
    return Finding(link, Verdict.UNKNOWN, f"{host_of(answer.url)} answers {answer.status}")


def _absent(link: Link, where: str) -> Finding:
    return Finding(link, Verdict.FAILING, f"{where} does not know it")


def _compared(link: Link, work: Work) -> Finding:
    """Whether the work found is the one that the entry speaks of."""
    if not link.titles or any(title_likeness(work.title, t) >= 0.9 for t in link.titles):
        return Finding(link, Verdict.OK)
    if authors_agree(work.authors, link.authors):
        return Finding(link, Verdict.RETITLED, "the title differs", work.title)
    return Finding(link, Verdict.MISMATCH, f"it belongs to {work.title!r}")


def _object(answer: Answer) -> Mapping[str, Any]:
    data = answer.json()
    if not isinstance(data, Mapping):
        raise Unusable(f"{host_of(answer.url)} sent JSON of another form")
    return data


def _only_work(answer: Answer) -> Work:
    works = read(answer)
    if len(works) != 1:
        raise Unusable(f"{host_of(answer.url)} sent {len(works)} records for one identifier")
    return works[0]


def _check_arxiv(batch: Sequence[Link], client: Client, endpoints: Endpoints) -> list[Finding]:
    url = arxiv_url([link.target for link in batch], endpoints)
    answer = client.ask(url, accept="application/atom+xml")
    if answer.status != 200:
        return [_untold(link, answer) for link in batch]
    works = {work.arxiv: work for work in read_arxiv(answer.body) if work.title}
    if not works:
        # A feed without any entry is how arXiv fails; it would condemn a hundred papers at once.
        return [Finding(link, Verdict.UNKNOWN, "arXiv sent no entries") for link in batch]
    return [
        _compared(link, works[link.target]) if link.target in works else _absent(link, "arXiv")
        for link in batch
    ]


def _check_doi(link: Link, client: Client, endpoints: Endpoints) -> Finding:
    answer = client.ask(crossref_url(link.target, endpoints), accept=_JSON)
    if answer.status == 200:
        return _compared(link, _only_work(answer))
    if answer.status not in _GONE:
        return _untold(link, answer)
    # Other agencies register DOIs too; the handle system knows all of them.
    answer = client.ask(f"{endpoints.handles}/{quote(link.target)}", accept=_JSON)
    if answer.status == 200 and _object(answer).get("responseCode") == 1:
        return Finding(link, Verdict.OK, "registered outside Crossref, title not compared")
    return _absent(link, "doi.org") if answer.status in _GONE else _untold(link, answer)


def _check_openreview(link: Link, client: Client, endpoints: Endpoints) -> Finding:
    untold: Finding | None = None
    for base in endpoints.openreview:
        answer = client.ask(f"{base}/notes?{urlencode({'id': link.target})}", accept=_JSON)
        if answer.status == 200 and _object(answer).get("notes"):
            return _compared(link, _only_work(answer))
        if answer.status != 200 and answer.status not in _GONE:
            untold = untold or _untold(link, answer)
    return untold or _absent(link, "OpenReview")


def _check_dblp(link: Link, client: Client, endpoints: Endpoints) -> Finding:
    return _check_page(link, f"{endpoints.dblp}/rec/{quote(link.target)}.xml", client)


def _check_hub(link: Link, client: Client, endpoints: Endpoints) -> Finding:
    prefix, _, bare = link.target.partition("/")
    if prefix == "collections":
        # The API wants the number that the page's address may leave out.
        return _check_page(link, f"{endpoints.hub_pages}/{quote(link.target)}", client)
    if prefix not in ("datasets", "spaces"):
        prefix, bare = "", link.target
    path = link.target if prefix else f"models/{link.target}"
    answer = client.ask(f"{endpoints.hub}/{quote(path)}", accept=_JSON)
    if answer.status != 200:
        return _absent(link, "the hub") if answer.status in _GONE else _untold(link, answer)
    name = _object(answer).get("id")
    if isinstance(name, str) and name.casefold() != bare.casefold():
        target = f"{prefix}/{name}" if prefix else name
        return Finding(link, Verdict.MOVED, "it has another name now", target)
    return Finding(link, Verdict.OK)


def _check_github(link: Link, client: Client, endpoints: Endpoints) -> Finding:
    answer = client.ask(f"{endpoints.github}/repos/{link.target}", accept=_JSON)
    if answer.status in _GONE:
        return _absent(link, "GitHub")
    if answer.status == 451:
        return Finding(link, Verdict.FAILING, "GitHub withholds it for legal reasons")
    if answer.status != 200:
        # Out of requests at the API: the page still tells whether it is there.
        page = _check_page(link, f"{endpoints.github_pages}/{link.target}", client)
        detail = f"{host_of(answer.url)} answers {answer.status}, only the page was asked"
        return replace(page, detail=page.detail or detail)
    return read_repository(link, answer.json())


def read_repository(link: Link, data: object) -> Finding:
    """The verdict that GitHub's description of a repository gives."""
    name = data.get("full_name") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(name, str):
        return Finding(link, Verdict.UNKNOWN, "GitHub sent no description of a repository")
    if name.casefold() != link.target.casefold():
        url = f"https://github.com/{name}"
        return Finding(link, Verdict.MOVED, "the repository was renamed", url)
    if data.get("size") == 0 and not link.expected_empty:
        return Finding(link, Verdict.EMPTY, "the repository is empty")
    archived = data.get("archived") is True or data.get("disabled") is True
    if archived and not link.expected_archived:
        return Finding(link, Verdict.ARCHIVED, "the repository is read-only")
    return Finding(link, Verdict.OK)


def _check_page(link: Link, url: str, client: Client) -> Finding:
    try:
        answer: Answer | None = client.ask(url, method="HEAD")
    except Failure as failure:
        if failure.kind not in ("broken", "connection", "timeout"):
            raise
        answer = None
    if answer is None or not (200 <= answer.status < 300 or answer.status in _OVERLOADED):
        # Many servers answer HEAD wrongly; only GET is believed about absence.
        answer = client.ask(url, first_bytes=FIRST_BYTES)
    if answer.status in _GONE:
        return Finding(link, Verdict.FAILING, f"{host_of(answer.url)} answers {answer.status}")
    if not (200 <= answer.status < 300 or answer.status == 416):
        return _untold(link, answer)
    permanent = ""
    for hop in answer.hops:
        if hop.status not in _PERMANENT:
            break
        permanent = hop.url
    if permanent:
        return Finding(link, Verdict.MOVED, "the server names a new address for good", permanent)
    return Finding(link, Verdict.OK)


def _check_web(link: Link, client: Client, endpoints: Endpoints) -> Finding:
    return _check_page(link, link.target, client)


_ONE: Mapping[Kind, Callable[[Link, Client, Endpoints], Finding]] = {
    Kind.DOI: _check_doi,
    Kind.OPENREVIEW: _check_openreview,
    Kind.DBLP: _check_dblp,
    Kind.HUB: _check_hub,
    Kind.GITHUB: _check_github,
    Kind.WEB: _check_web,
}

# --------------------------------------------------------------------------- all links


def _guarded(run: Callable[[], list[Finding]], batch: Sequence[Link]) -> list[Finding]:
    try:
        return run()
    except Refused as error:
        return [Finding(link, Verdict.REFUSED, str(error)) for link in batch]
    except Failure as failure:
        verdict = Verdict.FAILING if failure.kind == "no-host" else Verdict.UNKNOWN
        return [Finding(link, verdict, failure.detail) for link in batch]
    except Unusable as error:
        return [Finding(link, Verdict.UNKNOWN, str(error)) for link in batch]


def _jobs(
    wanted: Iterable[Link], client: Client, endpoints: Endpoints
) -> dict[str, list[tuple[Sequence[Link], Callable[[], list[Finding]]]]]:
    """What is to be asked, by the host that will be asked first."""
    jobs: dict[str, list[tuple[Sequence[Link], Callable[[], list[Finding]]]]] = {}
    arxiv: list[Link] = []
    for link in wanted:
        if link.kind is Kind.ARXIV:
            arxiv.append(link)
            continue
        host = host_of(link.target) if link.kind is Kind.WEB else link.kind.value

        def one(link: Link = link) -> list[Finding]:
            return [_ONE[link.kind](link, client, endpoints)]

        jobs.setdefault(host, []).append(((link,), one))
    for start in range(0, len(arxiv), ARXIV_BATCH):
        batch = arxiv[start : start + ARXIV_BATCH]

        def many(batch: Sequence[Link] = batch) -> list[Finding]:
            return _check_arxiv(batch, client, endpoints)

        jobs.setdefault(Kind.ARXIV.value, []).append((batch, many))
    return jobs


def check(
    wanted: Sequence[Link],
    client: Client,
    endpoints: Endpoints,
    memory: Memory,
    *,
    patience: Patience | None = None,
    workers: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[Finding]:
    """The verdict on every link, in the order given; `memory` learns but is not saved.

    Hosts are asked at the same time, each of them one thing after another.

    Args:
        wanted: Links.
        client: Asks; its clock says what day it is.
        endpoints: Services.
        memory: Earlier days.
        patience: When a link counts as dead.
        workers: Hosts asked at the same time.
        progress: Called with the number of links just done.
    """
    found: dict[str, Finding] = {}
    stopped = threading.Event()

    def work_off(
        jobs: list[tuple[Sequence[Link], Callable[[], list[Finding]]]],
    ) -> list[Finding]:
        done: list[Finding] = []
        for batch, run in jobs:
            if stopped.is_set():
                break
            done += _guarded(run, batch)
            if progress is not None:
                progress(len(batch))
        return done

    with ThreadPoolExecutor(workers) as pool:
        hosts = _jobs(wanted, client, endpoints)
        futures = [pool.submit(work_off, jobs) for jobs in hosts.values()]
        try:
            for future in as_completed(futures):
                found.update((finding.link.key, finding) for finding in future.result())
        except BaseException:  # also Ctrl-C: let each host finish the one thing it is at
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    findings = _not_offline([found[link.key] for link in wanted])
    day = datetime.fromtimestamp(client.clock.now(), UTC).date()
    return [memory.judge(f, day, patience or Patience()) for f in findings]


def _not_offline(findings: list[Finding]) -> list[Finding]:
    """When no link at all was reached, names that cannot be found are our own fault."""
    silent = {Verdict.UNKNOWN, Verdict.FAILING, Verdict.REFUSED}
    unfound = [f.verdict is Verdict.FAILING and "no known address" in f.detail for f in findings]
    if not any(unfound) or any(
        f.verdict not in silent or (f.verdict is Verdict.FAILING and not u)
        for f, u in zip(findings, unfound, strict=True)
    ):
        return findings
    return [
        replace(f, verdict=Verdict.UNKNOWN) if u else f
        for f, u in zip(findings, unfound, strict=True)
    ]
