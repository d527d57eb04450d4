"""README and site pages from the literature, the method files and the committed results.

Templates print through `kb.text.plain`: whatever a field holds arrives as text. Only values that
this module marks as finished Markdown pass as they are.
"""

from __future__ import annotations

import ast
import io
import json
import re
import textwrap
import tokenize
import types
import typing
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlencode

import jinja2
import yaml  # type: ignore[import-untyped,unused-ignore]
from markupsafe import Markup

from kb import schema
from kb.cards import card_of, command, label
from kb.export import FILES, bibtex_entry, columns, llms_txt, venue
from kb.files import replace_folder
from kb.ledger import Reporting, comparable, reporting
from kb.recomputed import Recomputed, Verdict, by_row
from kb.results import (
    Experiment,
    Table,
    by_size,
    cells,
    claim,
    dense_first,
    headline,
    labelled,
    protocol_line,
    rows_of,
)
from kb.rules import RULES, Rule
from kb.schema import (
    VOCABULARIES,
    Code,
    CodeStatus,
    Depth,
    Direction,
    Evidence,
    Family,
    Granularity,
    Literature,
    Measure,
    Metric,
    Paper,
    Record,
    ReportItem,
    Result,
    Section,
    Source,
    Sparsity,
    SparsityKind,
    Term,
)
from kb.text import link, one_line, plain, safe_url, source_url, title

# --------------------------------------------------------------------------- what is rendered


@dataclass(frozen=True, slots=True)
class Project:
    """What the pages must know about the repository itself."""

    repository: str
    """Address of the repository, from `extra.repository` of mkdocs.yml; the only place."""


@dataclass(frozen=True, slots=True)
class Option:
    """One field of a method's `Config`."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Method:
    """What a file in methods/ says about itself, read without importing it."""

    name: str
    doc: str
    card: Mapping[str, Any]
    options: tuple[Option, ...]

    @property
    def summary(self) -> str:
        return one_line(self.doc.split("\n\n", 1)[0])

    @property
    def paper(self) -> str | None:
        found = self.card.get("paper")
        return found if isinstance(found, str) else None

    @property
    def label(self) -> str:
        """The name as pages show it: a reconstruction says so."""
        return label(self.name, self.card)

    @property
    def mark(self) -> Markup:
        """What the label adds to the name, for where the name alone is a link."""
        return Markup(self.label.removeprefix(self.name))  # with its space, which a cell loses

    @property
    def command(self) -> str:
        """The command that tries it, on as many lines as it needs."""
        words = command(self.name, self.card).replace("--set ", "--set\0")  # stays with its value
        lines = textwrap.wrap(words, 86, break_long_words=False, break_on_hyphens=False)
        return " \\\n    ".join(lines).replace("\0", " ")


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that pages are made of."""

    literature: Literature
    project: Project
    methods: tuple[Method, ...] = ()
    results: Mapping[str, Table] = field(default_factory=dict)
    """Result tables by task, as `kb.results.table` gives them."""
    images: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """Pictures of a task's results."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Time and disk use of the two commands, from site/measured.json; empty until measured."""
    contributing: str = ""
    """Text of CONTRIBUTING.md."""
    recomputed: tuple[Recomputed, ...] = ()
    """Claims that were recomputed, from site/claims.json."""
    experiments: tuple[Experiment, ...] = ()
    """Questions about methods, each with its bar and what was found."""
    questions: tuple[Method, ...] = ()
    """The files that ask them, run or not: what `read_methods` finds in methods/experiments."""
    method_images: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    """Samples of one method beside the dense model's, by task and method."""
    benchmarks: Mapping[str, Any] = field(default_factory=dict)
    """What scripts/bench_kb.py and bench_links.py measured, from site/benchmarks.json."""
    masks: Mapping[str, Any] = field(default_factory=dict)
    """What scripts/bench_masks.py measured, from site/mask_benchmark.json."""

    @property
    def waiting(self) -> tuple[Method, ...]:
        """Questions without a record."""
        done = {experiment.name for experiment in self.experiments}
        return tuple(question for question in self.questions if question.name not in done)

    def verdicts_on(self, method: Method) -> Counter[str]:
        """How many experiments about a method came out which way."""
        return Counter(e.verdict for e in self.experiments if method.name in e.methods)

    def method_of(self, paper: Paper) -> Method | None:
        """The method file that implements `paper`."""
        return next((m for m in self.methods if m.paper == paper.id), None)

    def known_as(self, paper: Paper) -> str:
        """The name that a work goes by: its method's where the title has none, else the title's."""
        method = self.method_of(paper)
        return str(method.card.get("known_as", "")) if method else ""

    def name_of(self, paper: Paper) -> str:
        """The short name of a work, or its title."""
        return self.known_as(paper) or short_title(paper)


def project(root: Path) -> Project:
    """Read mkdocs.yml in `root`.

    Raises:
        ValueError: on broken YAML, or when `extra.repository` is no https address.
    """
    text = (root / "mkdocs.yml").read_text(encoding="utf-8")
    try:
        address = safe_url(str(yaml.safe_load(text)["extra"]["repository"]))
    except yaml.YAMLError as error:
        raise ValueError(f"mkdocs.yml: not valid YAML: {' '.join(str(error).split())}") from error
    except (TypeError, KeyError):
        address = None
    if address is None:
        raise ValueError("mkdocs.yml: extra.repository must be an https address")
    return Project(address)


def read_method(path: Path) -> Method:
    """Docstring, `CARD` and `Config` of a method file.

    Raises:
        ValueError: when the file is not Python, or `CARD` is more than plain data.
    """
    text = path.read_text(encoding="utf-8")
    try:
        module = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{path.name}:{error.lineno}: not valid Python: {error.msg}") from error
    options: tuple[Option, ...] = ()
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            options = _options(node, text)
    return Method(path.stem, ast.get_docstring(module) or "", card_of(module), options)


def _options(config: ast.ClassDef, text: str) -> tuple[Option, ...]:
    comments: dict[int, tuple[str, bool]] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            comments[token.start[0]] = (token.string.lstrip("# "), alone)
    found = []
    for node in config.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above: list[str] = []
        row = node.lineno - 1
        while row in comments and comments[row][1]:
            above.insert(0, comments[row][0])
            row -= 1
        beside = [
            comments[row][0]
            for row in range(node.lineno, (node.end_lineno or node.lineno) + 1)
            if row in comments
        ]
        found.append(
            Option(
                node.target.id,
                ast.unparse(node.annotation),
                ast.unparse(node.value) if node.value else "required",
                " ".join(above + beside),
            )
        )
    return tuple(found)


def read_methods(folder: Path) -> tuple[Method, ...]:
    """Every method of `folder`, by name; files without a `Config` are none."""
    files = sorted(p for p in folder.glob("*.py") if not p.name.startswith("_"))
    return tuple(m for m in map(read_method, files) if m.card)


# --------------------------------------------------------------------------- small pieces


def number(value: float) -> str:
    """A number as a source prints it, without a binary tail."""
    return f"{value:.12g}"


def commas(values: Iterable[object]) -> Markup:
    """Escaped values with commas."""
    return Markup(", ").join(plain(str(v)) for v in values)


def term_id(value: Term | Metric | type[Term]) -> str:
    """Anchor of a word, or of a whole vocabulary, in the glossary."""
    if isinstance(value, type):
        return value.__name__.lower()
    return f"{type(value).__name__.lower()}-{value.value.replace(':', '-')}"


def figure(text: str) -> Markup:
    """A cell of a result table; the range over seeds is small and does not break."""
    mean, bracket, rest = text.partition(" (")
    return plain(mean) + Markup(" ") + small(f"({rest}") if bracket else plain(mean)


def unbroken(text: str) -> Markup:
    """A number that keeps its unit on its line."""
    return Markup("&nbsp;").join(plain(part) for part in text.split(" ", 1))


def small(text: str) -> Markup:
    """An aside in a cell that does not break."""
    return Markup('<small class="range">{}</small>').format(plain(text))


MASK_BAR = 50  # milliseconds that the mask of a 3072 x 3072 layer may take


def slow_masks(benchmark: Mapping[str, Any]) -> list[str]:
    """Masks of site/mask_benchmark.json whose median misses the bar."""
    masks = benchmark["masks"]
    return [f"“{name}”" for name in masks if masks[name]["median_ms"] >= MASK_BAR]


def term(value: Term | Metric, root: str = "../") -> Markup:
    """A word of a vocabulary that leads to its definition."""
    return Markup(
        f'[{plain(value.value)}]({root}glossary.md#{term_id(value)} "{plain(value.definition)}")'
    )


def terms(values: Iterable[Term], root: str = "../") -> Markup:
    """Several such words."""
    return Markup(", ").join(term(v, root) for v in values)


def source(reference: str) -> Markup:
    """A source reference that leads to what it names, where that can be opened."""
    return link(reference, source_url(reference))


def row_source(origin: Source) -> Markup:
    """Where a result row was read: place, document with its version, and through what."""
    place = origin.place + (f", {origin.row}" if origin.row and origin.row != origin.place else "")
    document, _, _ = origin.document.partition(" ")
    if document.startswith("https://"):
        document = document.removeprefix("https://").split("/", 1)[0]
    shown = link(place, source_url(origin.document))
    shown += Markup('<br><small class="wide">') + plain(document)
    if origin.via:
        shown += Markup(" via ") + link(origin.via, source_url(origin.via))
    return shown + Markup("</small>")


_BOUND = {"about": "≈ ", "at-most": "≤ ", "at-least": "≥ "}
_ARROW = {Direction.LOWER: " ↓", Direction.HIGHER: " ↑", Direction.NEITHER: ""}


def _unit(measure: Measure) -> str:
    unit = measure.unit or measure.metric.unit
    return "" if unit == "1" else f" {unit}"


def measure_cell(measure: Measure) -> Markup:
    """A number with bound, range, unit, spread, baseline and note."""
    value = _BOUND.get(measure.bound.value, "") + number(measure.value)
    if measure.upper is not None:
        value += f"–{number(measure.upper)}"
    if measure.spread is not None:
        value += f" ± {number(measure.spread)}"
    shown = Markup("**") + plain(f"{value}{_unit(measure)}") + Markup("**")
    asides = []
    if measure.dense is not None:
        asides.append(Markup("dense&nbsp;") + plain(number(measure.dense)))
    if measure.note:
        asides.append(plain(measure.note))
    if asides:
        shown += Markup(" <small>") + Markup("; ").join(asides) + Markup("</small>")
    return shown


def sparsity(value: Sparsity) -> Markup:
    """How much was removed, of what, and in small letters of which part."""
    if value.kind is SparsityKind.NONE:
        return Markup("dense")
    parts = [f"{number(round(100 * value.value, 6))} %"] if value.value is not None else []
    parts += [value.pattern] if value.pattern else []
    if value.kind is not SparsityKind.UNSTATED:
        parts.append(f"of {value.kind.value}")
    else:
        parts.append("of what is not stated" if value.value is not None else "not stated")
    text = plain(" ".join(parts))
    asides = [value.scope] if value.scope else []
    asides += ["derived"] if value.origin.value == "derived" else []
    if not asides:
        return text
    return text + Markup("<br><small>") + plain("; ".join(asides)) + Markup("</small>")


def protocol(row: Result) -> str:
    """The settings of a row in one line."""
    p = row.protocol
    steps = f"{p.steps} steps" if p.steps else ""
    guidance = f"guidance {number(p.guidance)}" if p.guidance is not None else ""
    samples = f"{p.samples} samples" if p.samples else ""
    seeds = f"{p.seeds} seeds" if p.seeds else ""
    batch = f"batch {p.batch}" if p.batch else ""
    against = f"against {p.reference_set}" if p.reference_set else ""
    retraining = f"retraining {p.retraining}" if p.retraining else ""
    parts = (p.sampler, steps, guidance, samples, seeds, against, p.fid_implementation, batch)
    more = (retraining, row.hardware, row.precision, p.note)
    return "; ".join(x for x in (*parts, *more) if x)


_CODE_LABEL = {
    CodeStatus.RELEASED: "released",
    CodeStatus.PARTIAL: "partial",
    CodeStatus.WEIGHTS_ONLY: "weights only",
    CodeStatus.STUB: "page without code",
    CodeStatus.EMPTY: "empty repository",
    CodeStatus.GONE: "gone",
    CodeStatus.NONE_FOUND: "none found",
    CodeStatus.UNCHECKED: "link not opened",
}
_CODE_RANK = {status: rank for rank, status in enumerate(_CODE_LABEL)}


def best_code(paper: Paper) -> Code | None:
    """The repository that is most use."""
    return min(paper.code, key=lambda c: _CODE_RANK[c.status], default=None)


def code_label(paper: Paper) -> str:
    """What the best repository of a work is, honestly."""
    code = best_code(paper)
    if code is None:
        return "not looked for"
    aside = ", not the authors'" if code.official is False else ""
    return _CODE_LABEL[code.status] + aside


def code_cell(paper: Paper) -> Markup:
    """The same, as a link in Markdown."""
    code = best_code(paper)
    return link(code_label(paper), code.url if code else None)


def code_anchor(paper: Paper) -> Markup:
    """The same, as a link in HTML."""
    code = best_code(paper)
    address = safe_url(code.url) if code else None
    label = plain(code_label(paper))
    return Markup('<a href="{}">{}</a>').format(address, label) if address else label


def removed(paper: Paper) -> str:
    """Granularity and unit in a few words."""
    shape = ", ".join(g.value for g in paper.granularity)
    units = ", ".join(u.value for u in paper.units)
    return f"{shape}: {units}" if shape and units else shape or units


def short_title(paper: Paper) -> str:
    """The name before a title's colon where there is one, else the title."""
    head = paper.title.split(":", 1)[0]
    return head if len(head) <= 32 and ":" in paper.title else paper.title


def weak_evidence(paper: Paper) -> str | None:
    """What a reader must be told about an entry that rests on little."""
    return {
        Evidence.LIST: "This entry rests on paper lists alone: neither the paper nor its abstract "
        "was read here.",
        Evidence.CITATION: "This entry rests on citations in other papers alone.",
    }.get(paper.evidence)


def issue_link(repository: str, form: str, title: str, **fields: str) -> Markup:
    """Address of an issue form with some of its fields filled in, for a link's target."""
    query = urlencode({"template": f"{form}.yml", "title": title, **fields})
    return Markup(f"{repository}/issues/new?{query.replace('&', '&amp;')}")


def words(name: str) -> str:
    """`PublicationType` as people write it: Publication type."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).capitalize()


def unread_items(paper: Paper) -> tuple[ReportItem, ...]:
    """What nobody looked up in the paper."""
    return tuple(i for i, s in reporting(paper).items() if s is Reporting.NOT_TRANSCRIBED)


def verdicts(found: Iterable[Recomputed], every: bool = False) -> str:
    """How many claims agree, differ or cannot be recomputed, in words."""
    counts = Counter(one.verdict for one in found)
    words: dict[Verdict, str] = {
        "agrees": "agree",
        "differs": "differ",
        "not recomputable": "not recomputable",
    }
    return ", ".join(f"{counts[key]} {word}" for key, word in words.items() if every or counts[key])


_RULE_GROUPS = {
    "identifiers": "Identifiers and duplicates",
    "publication": "Publication",
    "links": "Links and code",
    "tags": "Tags and curation",
    "relations": "Relations",
    "prose": "Words",
    "results": "Result rows",
    "arithmetic": "Arithmetic of result rows",
}


def rules_by_noun() -> dict[str, list[Rule]]:
    """Every rule under the heading of its module."""
    groups: dict[str, list[Rule]] = {name: [] for name in _RULE_GROUPS.values()}
    for rule in RULES.values():
        module = rule.check.__module__.rpartition(".")[2]
        groups.setdefault(_RULE_GROUPS.get(module, module.capitalize()), []).append(rule)
    return {name: rules for name, rules in groups.items() if rules}


_REPORTED = {
    Reporting.REPORTED: Markup("reported"),
    Reporting.NOT_REPORTED: Markup("**not reported**"),
    Reporting.NOT_TRANSCRIBED: Markup("–"),
}


def reporting_cell(paper: Paper, item: ReportItem) -> Markup:
    """Whether a paper reports an item, in a word."""
    return _REPORTED[reporting(paper)[item]]


def read_for_gaps(literature: Literature) -> tuple[Paper, ...]:
    """The works about which anything is known of what they report, those with most known first."""

    def unknown(paper: Paper) -> int:
        return len(unread_items(paper))

    found = (p for p in literature.papers if unknown(p) < len(ReportItem))
    return tuple(sorted(found, key=lambda p: (unknown(p), p.id)))


def gaps(literature: Literature) -> dict[ReportItem, Counter[Reporting]]:
    """How many works report an item, do not report it, or were not read for it."""
    states = [reporting(p) for p in literature.papers]
    return {item: Counter(s[item] for s in states) for item in ReportItem}


def fenced(text: str, language: str) -> Markup:
    """A code block; `text` must not hold a line of backticks, which one-line fields cannot."""
    return Markup(f"```{language}\n{text.rstrip()}\n```\n")


_INLINE_CODE = re.compile(r"&#96;(.+?)&#96;")


def _doc_text(text: str) -> Markup:
    # str: a Markup would escape the elements that the pattern puts in.
    return Markup(_INLINE_CODE.sub(r"<code>\1</code>", str(plain(text))))


def doc_blocks(doc: str) -> tuple[Markup, ...]:
    """Paragraphs, lists and indented formulas of a docstring after its first, as Markdown."""
    blocks: list[Markup] = []
    for block in doc.split("\n\n")[1:]:
        lines = block.strip("\n").splitlines()
        first_item = next((i for i, row in enumerate(lines) if _MARK.match(row)), None)
        if lines and all(row.startswith("    ") for row in lines):
            blocks.append(fenced("\n".join(row[4:].replace("```", "") for row in lines), "text"))
            continue
        head = lines if first_item is None else lines[:first_item]
        if head:
            blocks.append(_doc_text(" ".join(head)))
        if first_item is not None:
            blocks.append(_doc_list(lines[first_item:]))
    return tuple(blocks)


_MARK = re.compile(r"(?:\*|(\d)\.) ")


def _doc_list(lines: Sequence[str]) -> Markup:
    """Items that begin with `* ` or `1. `, each on as many lines as it likes."""
    items: list[tuple[Markup, list[str]]] = []
    for line in lines:
        if found := _MARK.match(line):
            mark = Markup(f"{found[1]}. " if found[1] else "- ")
            items.append((mark, [line[found.end() :]]))
        else:
            items[-1][1].append(line)
    return Markup("\n").join(mark + _doc_text(" ".join(text)) for mark, text in items)


# --------------------------------------------------------------------------- claims


@dataclass(frozen=True, slots=True)
class Claims:
    """Rows of one paper about one model and data set."""

    heading: str
    metrics: tuple[Metric, ...]
    rows: tuple[Result, ...]
    differing: tuple[str, ...]
    """Fields in which the rows differ or that they leave open, so that they must not be ranked."""
    notes: tuple[str, ...]
    """What a reader must know of some rows, each once."""


_METRIC_ORDER = {metric: index for index, metric in enumerate(Metric)}


def claims(paper: Paper) -> tuple[Claims, ...]:
    """The result rows of a paper, grouped by what they are about."""
    groups: dict[tuple[str, str | None, str | None], list[Result]] = {}
    for row in paper.results:
        groups.setdefault((row.base_model, row.dataset, row.resolution), []).append(row)
    found = []
    for (base, dataset, resolution), rows in groups.items():
        metrics = {m.metric for row in rows for m in row.measures}
        differing: dict[str, None] = {}
        for row in rows[1:]:
            answer = comparable(rows[0], row)
            differing |= dict.fromkeys((*answer.differing, *answer.unstated))
        differing.pop("measures", None)
        heading = base + (f" on {dataset}" if dataset else "")
        found.append(
            Claims(
                heading + (f", {resolution}" if resolution else ""),
                tuple(sorted(metrics, key=_METRIC_ORDER.__getitem__)),
                tuple(rows),
                tuple(name.replace("_", " ") for name in differing),
                tuple(dict.fromkeys(row.note for row in rows if row.note)),
            )
        )
    return tuple(found)


def cell(row: Result, metric: Metric) -> Markup:
    """All measures of a metric in a row."""
    return Markup("<br>").join(measure_cell(m) for m in row.measures if m.metric is metric)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A relation seen from one of its two ends."""

    text: str
    other: Paper
    note: str | None
    reference: str | None


_OUTGOING = {
    "extends": "extends",
    "compares-with": "prints numbers for",
    "same-authors-followup": "is later work by authors of",
    "contradicts": "disagrees with",
    "uses": "uses",
    "combines-with": "was run together with",
    "implements": "implements",
    "surveys": "surveys",
}
_INCOMING = {
    "extends": "is extended by",
    "compares-with": "is measured by",
    "same-authors-followup": "was followed, by some of its authors, by",
    "contradicts": "is contradicted by",
    "uses": "is used by",
    "combines-with": "was run together with",
    "implements": "is implemented by",
    "surveys": "is surveyed by",
}


def neighbours(literature: Literature) -> dict[str, list[Neighbour]]:
    """Relations of every paper in both directions."""
    papers = {p.id: p for p in literature.papers}
    found: dict[str, list[Neighbour]] = {p: [] for p in papers}
    incoming: dict[str, list[Neighbour]] = {p: [] for p in papers}
    for paper in literature.papers:
        for r in paper.relations:
            if r.to not in papers:
                continue
            kind = r.type.value
            found[paper.id].append(Neighbour(_OUTGOING[kind], papers[r.to], r.note, r.source))
            incoming[r.to].append(Neighbour(_INCOMING[kind], paper, r.note, r.source))
    return {p: found[p] + incoming[p] for p in papers}


# --------------------------------------------------------------------------- field reference

_TEXT_TYPES: Sequence[tuple[object, str]] = (
    (schema.Slug, "short name: lower case, digits, hyphens"),
    (schema.RowId, "row name: lower case, digits, hyphens, dots"),
    (schema.ZooName, "architecture name: lower case, digits, underscores"),
    (schema.Line, "one line of text"),
    (schema.Prose, "text of at most 1500 characters"),
    (schema.Summary, "text of 40 to 400 characters"),
    (schema.Date, "day in quotes, 'YYYY-MM-DD'"),
    (schema.ArxivId, "arXiv id in quotes, without version"),
    (schema.Doi, "DOI without address"),
    (schema.OpenReviewId, "OpenReview forum id"),
    (schema.DblpKey, "DBLP key"),
    (schema.HubId, "owner/name on the Hugging Face hub"),
    (schema.Url, "https address"),
    (schema.SourceRef, "source reference"),
    (schema.Year, "year"),
    (schema.Count, "whole number"),
    (schema.Number, "number"),
    (schema.Fraction, "fraction from 0 to 1"),
    (schema.Resolution, "width x height"),
    (schema.Pattern, "n:m in quotes"),
    (bool, "true or false"),
    (str, "text"),
    (int, "whole number"),
    (float, "number"),
)
DOCUMENTED: tuple[type[Record], ...] = (
    schema.Paper,
    schema.Publication,
    schema.Code,
    schema.Relation,
    schema.Curation,
    schema.Result,
    schema.Sparsity,
    schema.Protocol,
    schema.Measure,
    schema.Source,
    schema.Tool,
    schema.Tutorial,
)


def type_name(hint: Any) -> Markup:
    """What may stand in a field, in words, with links to vocabularies and records."""
    for known, name in _TEXT_TYPES:
        if hint == known:
            return plain(name)
    if isinstance(hint, type):
        if issubclass(hint, Term | Metric):
            return Markup(f"one of [{words(hint.__name__)}](glossary.md#{hint.__name__.lower()})")
        if issubclass(hint, Record):
            return Markup(f"[{hint.__name__}](#{hint.__name__.lower()})")
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return type_name(inner[0])
    if origin is tuple:
        return Markup("list: ") + type_name(inner[0])
    if origin in (Union, types.UnionType):
        return type_name(next(a for a in inner if a is not type(None)))
    if origin is typing.Literal:
        return commas(inner)
    raise TypeError(f"no words for the type {hint!r}")


@dataclass(frozen=True, slots=True)
class FieldRow:
    """One line of the field reference."""

    name: str
    type: Markup
    required: bool
    meaning: str


def field_rows(record: type[Record]) -> tuple[FieldRow, ...]:
    """The fields of a record in canonical order."""
    hints = get_type_hints(record, include_extras=True)
    return tuple(
        FieldRow(name, type_name(hints[name]), info.is_required(), info.description or "")
        for name, info in record.model_fields.items()
    )


# --------------------------------------------------------------------------- templates

_NEEDS = {
    Granularity.STRUCTURED: "nothing special: tensors shrink",
    Granularity.SEMI_STRUCTURED: "hardware that runs the pattern",
    Granularity.UNSTRUCTURED: "a sparse runtime",
    Granularity.DYNAMIC: "a sampling loop that skips",
}
_MODEL_NAMES = (
    *("Stable Diffusion v1", "Stable Diffusion v2", "SDXL", "SD3", "FLUX", "PixArt", "DiT"),
    *("U-ViT", "DDPM", "LDM", "Open-Sora", "CogVideoX", "Wan", "HunyuanVideo", "SANA"),
)


_HEADINGS = {"n-m-sparsity": "N:m sparsity", "nas": "NAS", "dense-to-sparse-moe": "Dense to MoE"}


def heading(family: Family) -> str:
    """A family's name as a heading."""
    return _HEADINGS.get(family.value, family.value.replace("-", " ").capitalize())


def speed_needs(paper: Paper) -> str:
    """What a machine must offer before the technique saves time."""
    return "; ".join(dict.fromkeys(_NEEDS[g] for g in paper.granularity))


_STABLE = re.compile(r"(?:stable diffusion|sd)[ -]?v?([123](?:\.\d)?)", re.IGNORECASE)


def model_words(paper: Paper) -> str:
    """Base models with the other spellings that people search for."""
    names = " ".join(paper.base_models)
    versions = dict.fromkeys(_STABLE.findall(names))
    spellings = (f"sd{v} sd v{v} stable diffusion {v} stable diffusion v{v}" for v in versions)
    return " ".join((names, *spellings))


def models_named(literature: Literature) -> tuple[str, ...]:
    """Names of well-known models that occur among the base models, as search suggestions."""
    everything = " | ".join(map(model_words, literature.papers)).lower()
    return tuple(name for name in _MODEL_NAMES if name.lower() in everything)


def _finalize(value: object) -> Markup:
    if value is None:
        return Markup()
    return value if isinstance(value, Markup) else plain(str(value))


@cache
def environment(templates: Path) -> jinja2.Environment:
    """Templates whose every printed value is escaped for Markdown and HTML alike."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=True,
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.globals.update(
        arrow=_ARROW.__getitem__,
        bibtex=lambda paper: fenced(bibtex_entry(paper), "bibtex"),
        cell=cell,
        claims=claims,
        code_block=fenced,
        code_anchor=code_anchor,
        code_cell=code_cell,
        code_label=code_label,
        commas=commas,
        by_size=by_size,
        dense_first=dense_first,
        labelled=labelled,
        doc_blocks=doc_blocks,
        field_rows=field_rows,
        heading=heading,
        front_title=lambda text: Markup(json.dumps(title(text), ensure_ascii=False)),
        link=link,
        model_words=model_words,
        protocol=protocol,
        removed=removed,
        read_for_gaps=read_for_gaps,
        reporting_cell=reporting_cell,
        rules=rules_by_noun,
        mask_bar=MASK_BAR,
        slow_masks=slow_masks,
        small=small,
        unbroken=unbroken,
        doc_text=_doc_text,
        gaps=gaps,
        number=number,
        verdicts=verdicts,
        report_items=tuple(ReportItem),
        reporting=reporting,
        result_cells=cells,
        figure=figure,
        headline=headline,
        result_claim=claim,
        result_protocol=protocol_line,
        row_source=row_source,
        source=source,
        sparsity=sparsity,
        speed_needs=speed_needs,
        term=term,
        term_id=term_id,
        terms=terms,
        venue=venue,
        weak_evidence=weak_evidence,
        words=words,
        missing=Reporting.NOT_REPORTED,
        states=tuple(Reporting),
        unread_items=unread_items,
        pruning=Section.PRUNING,
        complementary=Section.COMPLEMENTARY,
    )
    return env


def families(literature: Literature, section: Section) -> list[tuple[Family, list[Paper]]]:
    """Papers of a half of the list by family, families in the order of their vocabulary."""
    groups: dict[Family, list[Paper]] = {}
    for paper in literature.papers:
        if paper.section is section:
            groups.setdefault(paper.family, []).append(paper)
    return [
        (family, sorted(groups[family], key=lambda p: (-(p.year or 0), p.id)))
        for family in Family
        if family in groups
    ]


def best_known(inputs: Inputs) -> list[Paper]:
    """Pruning first; what runs here, then what was read most closely, then the newest."""
    runs = {m.paper for m in inputs.methods}
    sections, depths = list(Section), list(Depth)

    def rank(paper: Paper) -> tuple[int, bool, int, int, str]:
        depth = depths.index(paper.curation.depth)
        year = paper.publication.year or paper.year or 0
        return sections.index(paper.section), paper.id not in runs, -depth, -year, paper.id

    return sorted(inputs.literature.papers, key=rank)


def _context(inputs: Inputs) -> dict[str, Any]:
    literature = inputs.literature
    repository = inputs.project.repository
    return {
        "inputs": inputs,
        "literature": literature,
        "papers": literature.papers,
        "repository": Markup(repository),
        "best_known": best_known(inputs),
        "issue": partial(issue_link, repository),
        "families": {s: families(literature, s) for s in Section},
        "method_of": {m.paper: m for m in inputs.methods if m.paper},
        "results": inputs.results,
        "name_of": inputs.name_of,
        "measured": inputs.measured,
        "benchmarks": inputs.benchmarks,
        "recomputed": by_row(inputs.recomputed),
        "experiments": inputs.experiments,
        "rows": sum(len(p.results) for p in literature.papers),
        "measures": sum(len(r.measures) for p in literature.papers for r in p.results),
        "by_id": {p.id: p for p in literature.papers},
        "models": models_named(literature),
    }


def readme(inputs: Inputs, templates: Path) -> str:
    """The text of README.md."""
    template = environment(templates).get_template("README.md.j2")
    return _tidy(template.render(_context(inputs)))


_BLANKS = re.compile(r"\n{3,}")


def _tidy(text: str) -> str:
    return _BLANKS.sub("\n\n", text).strip("\n") + "\n"


def pages(inputs: Inputs, templates: Path) -> dict[str, str]:
    """Every generated page by its path within the site's source."""
    env = environment(templates)
    context = _context(inputs)
    related = neighbours(inputs.literature)

    def page(template: str, **values: Any) -> str:
        return _tidy(env.get_template(template).render({**context, **values}))

    found = {
        "index.md": page("index.md.j2"),
        "papers/index.md": page("papers.md.j2"),
        "tools.md": page("tools.md.j2"),
        "tutorials.md": page("tutorials.md.j2"),
        "glossary.md": page("glossary.md.j2", vocabularies=VOCABULARIES, metrics=tuple(Metric)),
        "fields.md": page("fields.md.j2", records=DOCUMENTED),
        "data.md": page("data.md.j2", files=FILES, columns=columns()),
        "results/index.md": page("results.md.j2"),
        "methods/index.md": page("methods.md.j2"),
        "experiments/index.md": page("experiments.md.j2", waiting=inputs.waiting),
        "claims.md": page("claims.md.j2"),
        "unreported.md": page("unreported.md.j2"),
        "rules.md": page("rules.md.j2"),
        "contributing.md": _contributing(inputs),
        "llms.txt": llms_txt(inputs.literature).decode(),
    }
    by_family: dict[Family, list[Paper]] = {}
    for family, members in (pair for group in context["families"].values() for pair in group):
        by_family[family] = by_family.get(family, []) + members
    for family, members in by_family.items():
        found[f"families/{family.value}.md"] = page("family.md.j2", family=family, members=members)
    for paper in inputs.literature.papers:
        found[f"papers/{paper.id}.md"] = page(
            "paper.md.j2",
            paper=paper,
            method=inputs.method_of(paper),
            related=related[paper.id],
        )
    for method in inputs.methods:
        rows = {task: rows_of(method.name, table) for task, table in inputs.results.items()}
        found[f"methods/{method.name}.md"] = page(
            "method.md.j2",
            method=method,
            tables={t: r for t, r in rows.items() if r},
            pictures={
                task: found_there[method.name]
                for task, found_there in inputs.method_images.items()
                if method.name in found_there
            },
            evidence=[e for e in inputs.experiments if method.name in e.methods],
        )
    asked = {question.name: question for question in inputs.questions}
    for experiment in inputs.experiments:
        question = asked.get(experiment.name)
        found[f"experiments/{experiment.name}.md"] = page(
            "experiment.md.j2", experiment=experiment, doc=question.doc if question else ""
        )
    for task, table in inputs.results.items():
        found[f"results/{task}.md"] = page(
            "result.md.j2", task=task, table=table, images=inputs.images.get(task, ())
        )
    return found


_RELATIVE_LINK = re.compile(r"\]\((?!https://|#)([^)\s]+)\)")


def _contributing(inputs: Inputs) -> str:
    base = f"{inputs.project.repository}/blob/main/"
    text = _RELATIVE_LINK.sub(partial(_absolute, base), inputs.contributing)
    return "---\ntitle: Contributing\nhide: [navigation]\n---\n" + (text or "# Contributing\n")


def _absolute(base: str, match: re.Match[str]) -> str:
    return f"]({base}{match.group(1)})"


# --------------------------------------------------------------------------- staging


def stage(
    inputs: Inputs,
    templates: Path,
    docs: Path,
    target: Path,
    exports: Mapping[str, bytes] | None = None,
) -> int:
    """Make `target` hold what the site builder reads and nothing else; returns the page count.

    Everything is rendered before the first file is written, see `kb.files.replace_folder`.

    Args:
        inputs: What is rendered.
        templates: Folder of the templates.
        docs: Hand-written files.
        target: Folder to fill.
        exports: Files for `data/`, by name.

    Raises:
        FileNotFoundError: when `docs` is missing.
    """
    if not docs.is_dir():
        raise FileNotFoundError(f"{docs} is not a folder")
    files = {p.relative_to(docs).as_posix(): p.read_bytes() for p in docs.rglob("*") if p.is_file()}
    found = pages(inputs, templates)
    files |= {name: text.encode() for name, text in found.items()}
    for task, pictures in inputs.images.items():
        files |= {f"results/{task}/{picture.name}": picture.read_bytes() for picture in pictures}
    for task, by_method in inputs.method_images.items():
        files |= {f"results/{task}/samples/{p.name}": p.read_bytes() for p in by_method.values()}
    files |= {f"data/{name}": data for name, data in (exports or {}).items()}
    replace_folder(target, files)
    return sum(name.endswith(".md") for name in found)
