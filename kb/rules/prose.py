"""Texts: what can be shown, what was written by us, what is no text at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from html import unescape
from pathlib import Path
from typing import Any

from kb.load import Corpus, Entry
from kb.rules.registry import Finding, last_name, rule
from kb.schema import Paper, Tool, Tutorial, title_key

_INVISIBLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb"
    "\ud800-\udfff\ue000-\uf8ff\U000e0000-\U000e0fff]"
)


@rule("invisible-character", "error", "Characters that do not show hide what a text says.")
def invisible_character(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if (not text.isascii() or not text.isprintable()) and (match := _INVISIBLE.search(text)):
            message = f"holds U+{ord(match.group()):04X}, which does not show"
            for entry, path in corpus.where(text):
                yield Finding(entry, path, message, "delete it")


_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]|  | $")


@rule("spacing", "error", "Odd and doubled spaces break searches, and formatting moves them.")
def spacing(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if ("  " in text or text[-1:] == " " or not text.isascii()) and _SPACES.search(text):
            for entry, path in corpus.where(text):
                yield Finding(
                    entry, path, "holds a doubled, odd or last space", "use single plain spaces"
                )


_MIXED = re.compile("[A-Za-z][\u0400-\u04ff]|[\u0400-\u04ff][A-Za-z]")


@rule("lookalike", "error", "A Cyrillic letter in a Latin word makes a name nobody can find.")
def lookalike(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if not text.isascii() and (match := _MIXED.search(text)):
            for entry, path in corpus.where(text):
                yield Finding(
                    entry,
                    path,
                    f"mixes Latin and Cyrillic letters ({match.group()})",
                    "type the word anew",
                )


_MOJIBAKE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac|\ufffd")


@rule("mojibake", "error", "Text read in the wrong encoding misspells its authors.")
def mojibake(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if not text.isascii() and (match := _MOJIBAKE.search(text)):
            for entry, path in corpus.where(text):
                yield Finding(
                    entry,
                    path,
                    f"holds {match.group()!r}, the trace of a wrong encoding",
                    "copy the text from its source again",
                )


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
            if last_name(path) in _TABLE_FIELDS:
                yield Finding(entry, path, f"holds {what}", "rephrase without it")


_MARKUP = re.compile(r"<[/!?a-zA-Z][^>]{0,40}|&(?:amp|lt|gt|quot|apos|nbsp|#\d{1,6});")


@rule("html", "error", "Texts are shown as they are; markup in them is a mistake or an attack.")
def html(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if ("<" in text or "&" in text) and (match := _MARKUP.search(text)):
            for entry, path in corpus.where(text):
                yield Finding(entry, path, f"holds markup ({match.group()})", "write plain text")


_LATEX = re.compile(r"\\[a-zA-Z\"'`^~=.]|\$[^$]{1,80}\$|\{\w")
_LATEX_FIELDS = frozenset({"title", "alternate_titles", "authors", "summary", "name"})


@rule("latex", "error", "Titles from BibTeX carry commands that a reader sees as backslashes.")
def latex(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if ("\\" in text or "$" in text or "{" in text) and (match := _LATEX.search(text)):
            for entry, path in corpus.where(text):
                if last_name(path) in _LATEX_FIELDS:
                    yield Finding(
                        entry,
                        path,
                        f"holds LaTeX ({match.group()})",
                        "write the letters themselves: é, Δ",
                    )


_FIRST_PERSON = re.compile(r"\b(?:[Ww]e|[Oo]urs?|[Uu]s|I)\b(?![-/])")


@rule("first-person", "error", "A summary in the first person was copied from an abstract.")
def first_person(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.entries:
        match = _FIRST_PERSON.search(entry.record.summary)
        if match:
            yield Finding(
                entry,
                ("summary",),
                f"speaks in the first person ({match.group()!r})",
                "say in own words what the work does",
            )


_MARKETING = re.compile(
    r"\b(?:novel|state-of-the-art|sota|cutting-edge|ground-?breaking|revolutionary|revolutioni[sz]e\w*"
    r"|remarkabl[ey]|impressive(?:ly)?|outstanding(?:ly)?|unprecedented|superior|effortless(?:ly)?"
    r"|seamless(?:ly)?|elegant(?:ly)?|dramatic(?:ally)?|powerful|game-chang\w+|blazing\w*"
    r"|next-generation|world-class|unleash\w*)\b",
    re.IGNORECASE,
)


@rule(
    "marketing", "warning", "Praise is the authors' to give; a summary says what and at what cost."
)
def marketing(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.entries:
        if match := _MARKETING.search(entry.record.summary):
            yield Finding(
                entry, ("summary",), f"praises ({match.group()!r})", "give the number or the cost"
            )


@rule("title-summary", "error", "A summary that repeats the title tells the reader nothing.")
def title_summary(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.entries:
        record = entry.record
        title = record.name if isinstance(record, Tool) else record.title
        words = set(title_key(record.summary).split())
        if len(words - set(title_key(title).split())) < 5:
            yield Finding(
                entry, ("summary",), "hardly says more than the title", "say what is special"
            )


@rule("summary-end", "warning", "Summaries stand one after another and end like sentences.")
def summary_end(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.entries:
        if not entry.record.summary.endswith((".", ".)", ".'", '."')):
            yield Finding(
                entry, ("summary",), "does not end with a full stop", "finish the sentence"
            )


_RUN = 8  # words in a row; own words share shorter runs with any text on the same subject


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every `_RUN` words in a row of a text, without case and punctuation."""
    words = title_key(text).split()
    return zip(*(words[i:] for i in range(_RUN)), strict=False)


RECORDED = Path(__file__).parents[2] / "tests" / "kb" / "recorded"
"""Recorded answers of bibliographic services; they hold the abstracts of papers."""
_TAG = re.compile(r"<[^<>]{0,300}>")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for element in value.values():
            yield from _strings(element)
    elif isinstance(value, list):
        for element in value:
            yield from _strings(element)


@lru_cache(maxsize=4)
def recorded_runs(folder: Path) -> frozenset[tuple[str, ...]]:
    """Runs of words in the recorded responses (XML, HTML, JSON, text) of a folder."""
    found: set[tuple[str, ...]] = set()
    for path in sorted(folder.rglob("*")):
        if path.suffix not in {".xml", ".atom", ".html", ".json", ".txt"}:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            texts: Iterable[str] = _strings(json.loads(text))
        except (ValueError, RecursionError):
            texts = [text]
        for one in texts:
            found.update(runs(unescape(_TAG.sub(" ", one))))
    return frozenset(found)


@rule("copied-summary", "error", "Abstracts belong to their authors; a summary is in own words.")
def copied_summary(corpus: Corpus) -> Iterator[Finding]:
    recorded = recorded_runs(RECORDED)
    own: dict[tuple[str, ...], Entry[Paper] | Entry[Tool] | Entry[Tutorial]] = {}
    for entry in corpus.entries:
        record = entry.record
        elsewhere: set[tuple[str, ...]] = set()
        if isinstance(record, Paper):
            for note in record.notes:
                elsewhere.update(runs(note))
        source = None
        for run in runs(record.summary):
            other = own.setdefault(run, entry)
            if run in recorded:
                source = "a recorded abstract"
            elif run in elsewhere:
                source = "its notes"
            elif other is not entry:
                source = f"the summary of {other.record.id}"
            if source is not None:
                yield Finding(
                    entry,
                    ("summary",),
                    f"shares {_RUN} words in a row with {source}: {' '.join(run)}",
                    "say in own words what is special and what it costs",
                )
                break


_OPENING = re.compile(
    r"(?:TODO|[Tt]odo|TBD|tbd|TBA|tba|FIXME|XXX)\b"
    r"|(?i:lorem|coming soon|placeholder|insert |to be (?:added|filled|done))"
    r"|(?i:n/?a|unknown|\?+|-+|\.\.\.|…)$"
)
_WITHIN = re.compile(r"[Ll]orem ipsum|\bexample\.(?:com|org)\b|\b(?:TODO|TBD|FIXME)\b")
# Texts without one of these cannot match the pattern, which is slower to look for.
_HINTS = ("ipsum", "example.", "TODO", "TBD", "FIXME")


@rule("placeholder", "error", "A promise is not a fact; leave the key out until it is known.")
def placeholder(corpus: Corpus) -> Iterator[Finding]:
    for text in corpus.texts:
        if _OPENING.match(text) or (any(map(text.__contains__, _HINTS)) and _WITHIN.search(text)):
            for entry, path in corpus.where(text):
                yield Finding(
                    entry, path, "holds placeholder text", "fill it in, or remove the key"
                )


# --------------------------------------------------------------------------- names of people

_NOT_A_NAME = re.compile(r",|;|@|\d|\band\b|&|\bet\.? al\b|\(", re.IGNORECASE)
_INITIALS = re.compile(r"(?:[A-Z]\.?[ -]?)+")


def _authors(corpus: Corpus) -> Iterator[tuple[Entry[Any], tuple[str, ...]]]:
    for paper in corpus.papers:
        yield paper, paper.record.authors
    for tutorial in corpus.tutorials:
        yield tutorial, tutorial.record.authors


@rule("author-form", "error", "One name per item, first name first: BibTeX and search need it.")
def author_form(corpus: Corpus) -> Iterator[Finding]:
    for entry, authors in _authors(corpus):
        for index, name in enumerate(authors):
            if match := _NOT_A_NAME.search(name):
                yield Finding(
                    entry,
                    ("authors", index),
                    f"{name} is not one name ({match.group()!r})",
                    "write 'First Last', one a line; et_al: true where names are missing",
                )


@rule("author-initials", "warning", "Initials do not tell two people of one name apart.")
def author_initials(corpus: Corpus) -> Iterator[Finding]:
    for entry, authors in _authors(corpus):
        for index, name in enumerate(authors):
            first = name.rpartition(" ")[0]
            if first and _INITIALS.fullmatch(first):
                yield Finding(
                    entry,
                    ("authors", index),
                    f"{name} has initials only",
                    "give the first name as the paper prints it",
                )


@rule("author-repeated", "error", "Nobody signs a paper twice; a name was read off a wrong list.")
def author_repeated(corpus: Corpus) -> Iterator[Finding]:
    for entry, authors in _authors(corpus):
        seen: set[str] = set()
        for index, name in enumerate(authors):
            if name.lower() in seen:
                yield Finding(entry, ("authors", index), f"{name} stands here twice", "remove one")
            seen.add(name.lower())


@rule("author-cut", "error", "A list that is cut has a beginning.")
def author_cut(corpus: Corpus) -> Iterator[Finding]:
    for entry in corpus.papers:
        if entry.record.et_al and not entry.record.authors:
            yield Finding(
                entry, ("et_al",), "et_al without authors", "name the first authors, or remove it"
            )
