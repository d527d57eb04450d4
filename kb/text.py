"""Make any text safe for the place it is printed in: Markdown, HTML, LaTeX, CSV, a link.

What is dangerous in Markdown or HTML is written as a numeric character reference. Both read it as
plain text, so one escape serves table cells, paragraphs, headings, elements and quoted attributes.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from urllib.parse import quote, urlsplit

from markupsafe import Markup

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SPACE = re.compile(r"\s+")
_ESCAPED = re.compile(
    r"[&<>\"|`*\[\]{}\\~#$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=\w):(?=//)|(?<=[wW]{3})\."
)
# At the start of a paragraph or list item these would open a list, a heading or a rule.
_OPENING = re.compile(r"[-+=:!?](?![\w.])|\d{1,9}[.)](?=\s|$)")
_LATEX = {
    "\\": r"\textbackslash{}",
    # Not \{ and \}: BibTeX counts braces without looking at the backslash.
    "{": r"\textbraceleft{}",
    "}": r"\textbraceright{}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    '"': r"\textquotedbl{}",
    # An @ at the start of a line would open an entry for some readers.
    "@": r"\symbol{64}",
}
_LATEX_SPECIAL = re.compile("[" + re.escape("".join(_LATEX)) + "]")
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]", re.IGNORECASE)


@lru_cache(maxsize=65536)
def one_line(text: str) -> str:
    """`text` on one line, without characters that cannot be seen."""
    if not (text.isprintable() and text.isascii()):
        text = "".join(
            c if c.isspace() or unicodedata.category(c) not in _INVISIBLE else "" for c in text
        )
    return _SPACE.sub(" ", text).strip()


def _reference(match: re.Match[str]) -> str:
    return f"&#{ord(match.group())};"


@lru_cache(maxsize=65536)
def plain(text: str) -> Markup:
    """`text` as inline Markdown and as HTML that shows just the text and links or runs nothing.

    Holds in table cells, headings, paragraphs, list items and double-quoted attributes.
    """
    line = one_line(text)
    opening = _OPENING.match(line)
    if opening is None:
        return Markup(_ESCAPED.sub(_reference, line))
    end = opening.end()
    head = f"{line[: end - 1]}&#{ord(line[end - 1])};"
    return Markup(head + _ESCAPED.sub(_reference, line[end:]))


def title(text: str) -> str:
    """`text` for a page's `<title>`, which some themes unescape once: free of angle brackets."""
    swapped = one_line(text).replace("<", "‹").replace(">", "›")
    return swapped.replace("&", "&amp;").replace('"', "&quot;")


@lru_cache(maxsize=65536)
def safe_url(url: str | None) -> str | None:
    """`url` percent-encoded where needed, or None unless it is https at a named host.

    Bare addresses, credentials, white space and control characters are refused too.
    """
    if url is None or not url.isprintable() or " " in url or "\\" in url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme.lower() != "https" or "@" in parts.netloc:
        return None
    host = parts.hostname or ""
    if not _HOST.fullmatch(host):
        return None
    tail = quote(parts.path, safe="/%:@!$,+=~.-_&")
    if parts.query:
        tail += "?" + quote(parts.query, safe="/%:@!$,+=~.-_&?")
    if parts.fragment:
        tail += "#" + quote(parts.fragment, safe="/%:@!$,+=~.-_&?")
    return f"https://{host}{f':{port}' if port else ''}{tail}"


def link(label: str, url: str | None) -> Markup:
    """A Markdown link, or the label alone when the address is not on the allow-list."""
    address = safe_url(url)
    shown = plain(label)
    if address is None:
        return shown
    return Markup(f"[{shown or 'link'}]({address.replace('&', '&amp;')})")


def latex(text: str) -> str:
    """`text` for a field of a BibTeX entry; letters beyond ASCII stay as UTF-8."""
    return _LATEX_SPECIAL.sub(lambda m: _LATEX[m.group()], one_line(text))


def csv_text(text: str) -> str:
    """`text` for a CSV cell: spreadsheets must not take it for a formula."""
    line = one_line(text)
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line


_GITHUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([0-9a-f]{7,40}))?(?: (.+))?")


@lru_cache(maxsize=65536)
def source_url(reference: str) -> str | None:
    """Address behind a source reference such as `github:owner/repo@commit path` or `arxiv:id`."""
    if reference.startswith("https://"):
        return safe_url(reference.split(" ", 1)[0])
    kind, _, rest = reference.partition(":")
    word = rest.split(" ", 1)[0]
    if kind == "github" and (found := _GITHUB.fullmatch(rest)):
        repository, commit, path = found.groups()
        base = f"https://github.com/{repository}"
        if path and not path.startswith(("issue", "README.md (")):
            return safe_url(f"{base}/blob/{commit or 'HEAD'}/{path}")
        return safe_url(f"{base}/tree/{commit}" if commit else base)
    prefix = {
        "arxiv": "https://arxiv.org/abs/",
        "doi": "https://doi.org/",
        "openreview": "https://openreview.net/forum?id=",
        "dblp": "https://dblp.org/rec/",
        "huggingface": "https://huggingface.co/",
        "pypi": "https://pypi.org/project/",
    }.get(kind)
    return safe_url(prefix + word) if prefix and word else None
