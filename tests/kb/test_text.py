"""Arbitrary text must come out as text, whatever it holds."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import markdown
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kb import text

# Characters and fragments that mean something to Markdown, HTML, YAML or a browser.
NASTY = st.sampled_from(
    [
        "|", "\\", "\\|", "`", "``", "*", "_", "[", "]", "(", ")", "{", "}", "<", ">", "&", "#",
        "\n", "\r\n", "\t", "\x00", "\x02", "\x03", "\u2028", "\u202e", "\ufeff", "~~", "$", "^",
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{: onclick=alert(1) }",
        "[x](javascript:alert(1))", "![x](data:text/html,x)", "<javascript:alert(1)>",
        "&#x6a;avascript:", "https://example.com", "www.example.com", "<!--", "-->", "```", "    ",
        "&lt;script&gt;", "\x02wzxhzdk:0\x03", "[TOC]", "*[HTML]: x", "[^1]", "---", "1. ", "- ",
        "=", "</td>", '"', "'", "::: x", "!!! note", "??? x", "# ", "+ ", "> ",
    ]
)  # fmt: skip
HOSTILE = st.lists(st.one_of(st.text(), NASTY), max_size=8).map("".join)

ALLOWED = {"p", "table", "thead", "tbody", "tr", "th", "td", "a", "h2", "ul", "li", "div", "span"}


class Seen(HTMLParser):
    """Which elements and attributes a page holds, and the text of its cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self.rest = ""
        self._cell: str | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.cells.append(self._cell)
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is None:
            self.rest += data
        else:
            self._cell += data


def site_html(source: str) -> str:
    """`source` as the site builder reads it."""
    extensions = ["tables", "admonition", "attr_list", "md_in_html", "toc", "pymdownx.superfences"]
    return markdown.markdown(source, extensions=extensions)


def forge_html(source: str) -> str:
    """`source` as a reader of GitHub's dialect shows it."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(source)


def assert_harmless(seen: Seen) -> None:
    assert set(seen.tags) <= ALLOWED
    for name, value in seen.attributes:
        assert name in {"href", "id", "style", "title", "class"}
        assert name != "href" or (value or "").startswith(("https://", "#"))
        assert name != "style" or re.fullmatch(r"text-align: ?\w+;?", value or "")


@pytest.mark.parametrize("render", [site_html, forge_html])
@given(a=HOSTILE, b=HOSTILE)
def test_a_table_keeps_its_columns_and_shows_the_text(render, a: str, b: str) -> None:
    source = f"| x | y | z |\n|---|---|---|\n| {text.plain(a)} | {text.plain(b)} | end |\n"
    seen = Seen(render(source))
    assert_harmless(seen)
    assert len(seen.cells) == 6
    assert seen.cells[3:] == [text.one_line(a), text.one_line(b), "end"]


@pytest.mark.parametrize("render", [site_html, forge_html])
@given(value=HOSTILE)
def test_paragraphs_headings_and_items_hold_only_text(render, value: str) -> None:
    shown = text.plain(value)
    seen = Seen(render(f"## {shown}\n\n{shown}\n\n- {shown}\n"))
    assert_harmless(seen)
    assert set(seen.tags) <= {"h2", "p", "ul", "li"}
    line = text.one_line(value)
    assert " ".join(seen.rest.split()) == " ".join(f"{line} {line} {line}".split())


@given(value=HOSTILE)
def test_the_same_escape_serves_quoted_attributes(value: str) -> None:
    seen = Seen(f'<span title="{text.plain(value)}">{text.plain(value)}</span>')
    assert seen.tags == ["span"]
    assert seen.attributes == [("title", text.one_line(value))]


@pytest.mark.parametrize("render", [site_html, forge_html])
@given(label=HOSTILE, url=st.one_of(HOSTILE, HOSTILE.map("https://example.org/".__add__)))
def test_links_lead_to_https_or_nowhere(render, label: str, url: str) -> None:
    seen = Seen(render(f"| x | y |\n|---|---|\n| {text.link(label, url)} | z |\n"))
    assert_harmless(seen)
    assert len(seen.cells) == 4
    links = [value for name, value in seen.attributes if name == "href"]
    assert links == ([text.safe_url(url)] if text.safe_url(url) else [])


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JAVASCRIPT:alert(1)",
        "data:text/html,x",
        "http://example.org/",
        "//example.org/",
        "https://user:secret@example.org/",
        "https://localhost/",
        "https://127.0.0.1/",
        "https://a..org/",
        "https:///path",
        "https://exa mple.org/",
        "https://example.org/\n",
        "https://example.org:port/",
        "https://[::1/",
        "ftp://example.org/",
        "",
        None,
    ],
)
def test_addresses_that_are_refused(url: str | None) -> None:
    assert text.safe_url(url) is None


def test_addresses_that_are_kept() -> None:
    assert text.safe_url("https://arxiv.org/abs/2305.10924") == "https://arxiv.org/abs/2305.10924"
    assert text.safe_url("HTTPS://Example.org/a(b)|c") == "https://example.org/a%28b%29%7Cc"
    assert text.safe_url("https://a.org/x?id=1&b=2#s") == "https://a.org/x?id=1&b=2#s"


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("arxiv:2305.10924v2 Table 1", "https://arxiv.org/abs/2305.10924v2"),
        (
            "github:VainF/Diff-Pruning@71e922e assets/exp.png",
            "https://github.com/VainF/Diff-Pruning/blob/71e922e/assets/exp.png",
        ),
        ("github:a/b@1234567", "https://github.com/a/b/tree/1234567"),
        ("github:a/b", "https://github.com/a/b"),
        ("doi:10.1/x", "https://doi.org/10.1/x"),
        ("openreview:9pNWZLVZ4r", "https://openreview.net/forum?id=9pNWZLVZ4r"),
        ("huggingface:a/b", "https://huggingface.co/a/b"),
        ("https://iclr.cc/virtual/2025/35259 abstract", "https://iclr.cc/virtual/2025/35259"),
        ("http://example.org/", None),
        ("elsewhere:x", None),
    ],
)
def test_source_references_become_addresses(reference: str, url: str | None) -> None:
    assert text.source_url(reference) == url


@given(value=HOSTILE)
def test_titles_cannot_close_their_element(value: str) -> None:
    once = html.unescape(text.title(value))
    assert "<" not in once
    assert ">" not in once


@given(value=HOSTILE)
def test_latex_keeps_braces_balanced(value: str) -> None:
    escaped = text.latex(value)
    depth = 0
    for char in escaped:
        depth += (char == "{") - (char == "}")
        assert 0 <= depth <= 1
    assert depth == 0
    assert not re.search(r"(?<!\\)[$&#%_]", escaped)


@given(value=HOSTILE)
def test_csv_cells_are_no_formulas(value: str) -> None:
    assert not text.csv_text(value).startswith(("=", "+", "-", "@"))
