"""Addresses: public, stable, honest about where they lead."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

from kb.load import Corpus, FieldPath
from kb.rules.registry import Finding, rule
from kb.schema import CodeStatus, Paper, Tool

_URL_FIELDS = frozenset({"url", "docs", "page", "project"})
_ACTIVE = re.compile(r"\b(?:javascript|vbscript|file|blob):\S|\bdata:\w+/", re.IGNORECASE)
_SCHEMES = ("script:", "file:", "blob:", "data:")
_SECRET = re.compile(
    r"^(?:access_?token|token|api_?key|key|secret|password|sig|signature"
    r"|x-amz-.*|auth.*)$",
    re.IGNORECASE,
)
_LONGEST = 1500  # the schema refuses longer texts
_URL = re.compile(r"https?://[^\s<>)\"']+")


def _urls(corpus: Corpus) -> Iterator[tuple[str, str]]:
    """Every text that holds an address, with the address."""
    for text in corpus.texts:
        if "://" in text and len(text) <= _LONGEST:
            for url in _URL.findall(text):
                yield text, url


def _host(url: str) -> str:
    return url.split("/", 3)[2].rpartition("@")[2].lower().removeprefix("www.")


@rule("url-scheme", "error", "Only https links are shown; others can be altered or run code.")
def url_scheme(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if text.startswith("https://") or ":" not in text:
            continue
        # Sources such as github:… are most of the texts with a colon; the pattern is slow.
        active = "http://" in text or (
            any(map(text.lower().__contains__, _SCHEMES)) and _ACTIVE.search(text) is not None
        )
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
    # 2130706433, 0x7f000001 and 127.1 are the loopback to resolvers, and no public name looks so.
    if re.fullmatch(r"(?:0x[0-9a-f]+|\d+)(?:\.(?:0x[0-9a-f]+|\d+))*", host, re.IGNORECASE):
        return "names a bare IP address"
    if "." not in host or host.endswith((".local", ".localhost", ".internal", ".lan", ".home")):
        return "names a host that is not public"
    return None


@rule("private-url", "error", "Readers cannot open private addresses, and credentials leak.")
def private_url(corpus: Corpus) -> Iterator[Finding]:
    for text, url in _urls(corpus):
        if reason := _private(url):
            for entry, path in corpus.where(text):
                yield Finding(entry, path, f"the link {reason}", "give a public address")


_TRACKING = re.compile(
    r"[?&](utm_\w+|fbclid|gclid|msclkid|mc_[ce]id|igshid|ref_src|spm|share_source)=", re.IGNORECASE
)


@rule("tracking-url", "warning", "Tracking parameters follow readers and make one link many.")
def tracking_url(corpus: Corpus) -> Iterator[Finding]:
    for text, url in _urls(corpus):
        if match := _TRACKING.search(url):
            for entry, path in corpus.where(text):
                yield Finding(entry, path, f"the link carries {match[1]}", "remove the parameter")


_SHORTENERS_WORDS = (
    "bit.ly t.co goo.gl tinyurl.com ow.ly is.gd buff.ly rb.gy cutt.ly t.ly shorturl.at git.io "
    "lnkd.in dwz.cn b23.tv v.gd rebrand.ly tiny.cc"
)
_SHORTENERS = frozenset(_SHORTENERS_WORDS.split())


@rule("short-url", "error", "A shortened link hides its target and dies with the service.")
def short_url(corpus: Corpus) -> Iterator[Finding]:
    for text, url in _urls(corpus):
        if _host(url) in _SHORTENERS:
            for entry, path in corpus.where(text):
                yield Finding(
                    entry, path, f"{_host(url)} shortens links", "give the address it leads to"
                )


_ARCHIVES = frozenset({"archive.ph", "archive.is", "archive.today", "archive.li", "archive.vn"})
_SNAPSHOT = re.compile(r"https://web\.archive\.org/web/\d{14}(?:[a-z]{2}_)?/https?://")


@rule("archived-url", "error", "An archived page is only evidence with its date and address.")
def archived_url(corpus: Corpus) -> Iterator[Finding]:
    for text, url in _urls(corpus):
        host = _host(url)
        if host in _ARCHIVES or (host == "web.archive.org" and not _SNAPSHOT.match(url)):
            for entry, path in corpus.where(text):
                yield Finding(
                    entry,
                    path,
                    "the archived link names no moment or no page",
                    "write https://web.archive.org/web/YYYYMMDDhhmmss/https://…",
                )


_DERIVED = (
    (re.compile(r"https://(?:www\.|export\.)?arxiv\.org/(?:abs|pdf|html)/"), "arxiv"),
    (re.compile(r"https://(?:dx\.)?doi\.org/10\."), "doi"),
    (re.compile(r"https://openreview\.net/(?:forum|pdf)\?id="), "openreview"),
    (re.compile(r"https://dblp\.(?:org|uni-trier\.de)/rec/"), "dblp"),
    (re.compile(r"https://huggingface\.co/[\w.-]+/[\w.-]+/?$"), "hub"),
)


@rule("derived-url", "error", "Identifiers outlive addresses; addresses are made from them.")
def derived_url(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        record = entry.record
        places: list[tuple[FieldPath, str | None]] = [
            (("page",), record.page),
            (("project",), record.project),
            *((("code", i, "url"), code.url) for i, code in enumerate(record.code)),
        ]
        for path, url in places:
            name = next((n for pattern, n in _DERIVED if url and pattern.match(url)), None)
            if name is not None:
                yield Finding(
                    entry, path, f"this address belongs to an identifier ({name})", f"use {name}:"
                )


_REPOSITORY = re.compile(r"https://(?:www\.)?github\.com/[\w-]+/[\w.-]+(?:/tree/[^?#]+)?/?")


@rule("code-url", "error", "A code link leads to a repository, not to an account or one file.")
def code_url(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        for index, code in enumerate(entry.record.code):
            url = code.url or ""
            if not url.startswith("https://") or _host(url) != "github.com":
                continue
            if not _REPOSITORY.fullmatch(url) or url.rstrip("/").endswith(".git"):
                yield Finding(
                    entry,
                    ("code", index, "url"),
                    "is not the address of a repository",
                    "write https://github.com/owner/name, or with /tree/branch/folder",
                )


@rule("repeated-code", "error", "One repository with two statuses is a contradiction.")
def repeated_code(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        seen: set[str] = set()
        for index, code in enumerate(entry.record.code):
            key = (code.url or code.status.value).rstrip("/").lower()
            if key in seen:
                yield Finding(entry, ("code", index), "stands in this entry twice", "merge the two")
            seen.add(key)


@rule("code-checked", "warning", "What a link leads to changes; the status needs its day.")
def code_checked(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        for index, code in enumerate(entry.record.code):
            unchecked = code.status is CodeStatus.UNCHECKED
            if unchecked == (code.checked is not None):
                yield Finding(
                    entry,
                    ("code", index),
                    f"status {code.status.value} {'with' if unchecked else 'without'} a day",
                    "give the status that was seen" if unchecked else "add checked: 'YYYY-MM-DD'",
                )


# Identifiers of the SPDX list that code and weights of this field carry.
_SPDX_WORDS = (
    "0BSD AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 Artistic-2.0 BSD-2-Clause "
    "BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSL-1.0 BUSL-1.1 CC-BY-3.0 CC-BY-4.0 "
    "CC-BY-NC-3.0 CC-BY-NC-4.0 CC-BY-NC-ND-4.0 CC-BY-NC-SA-3.0 CC-BY-NC-SA-4.0 CC-BY-ND-4.0 "
    "CC-BY-SA-3.0 CC-BY-SA-4.0 CC0-1.0 CDDL-1.0 CECILL-2.1 ECL-2.0 EPL-2.0 EUPL-1.2 GPL-2.0-only "
    "GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later ISC LGPL-2.1-only LGPL-2.1-or-later "
    "LGPL-3.0-only LGPL-3.0-or-later MIT MIT-0 MPL-2.0 MS-PL NCSA ODbL-1.0 PDDL-1.0 PSF-2.0 "
    "PostgreSQL Python-2.0 UPL-1.0 Unlicense WTFPL Zlib"
)
_SPDX = frozenset(_SPDX_WORDS.split())


def _is_spdx(expression: str) -> bool:
    words = re.sub(r"[()]", " ", expression).split()
    parts = [word for word in words if word not in ("AND", "OR")]
    return bool(parts) and all(p in _SPDX or p.startswith("LicenseRef-") for p in parts)


@rule("licence", "warning", "A licence by its SPDX identifier can be compared and looked up.")
def licence(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.entries:
        record = entry.record
        stated: list[tuple[FieldPath, str | None]] = []
        if isinstance(record, Paper):
            stated = [(("code", i, "licence"), c.licence) for i, c in enumerate(record.code)]
        elif isinstance(record, Tool):
            stated = [(("licence",), record.licence)]
        for path, text in stated:
            if text is not None and text != "none" and not _is_spdx(text):
                yield Finding(
                    entry,
                    path,
                    f"{text} is not among the SPDX identifiers known here",
                    "write it as SPDX does, LicenseRef-Name for others, or none",
                )
