"""Read papers.yaml with the line of every field, and refuse what is broken in one clear sentence.

The reader walks YAML events with a stack of its own: no recursion, no aliases, no tags, so neither
deep nesting nor an alias bomb costs more than the bytes of the file.
"""

from __future__ import annotations

import difflib
import gc
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import yaml  # type: ignore[import-untyped,unused-ignore]
from pydantic import BaseModel, TypeAdapter, ValidationError

from kb.schema import RECORDS, Literature, Paper, Record, Tool, Tutorial

# 10,000 entries with as many result rows as now take 31 to 36 MB and 2.3 to 2.8 million nodes.
MAX_BYTES = 48 * 1024 * 1024
MAX_NODES = 4_000_000
MAX_DEPTH = 32
MAX_ITEMS = 20_000
MAX_PROBLEMS = 500

Severity = Literal["error", "warning"]
FieldPath = tuple[str | int, ...]
R = TypeVar("R", bound=Record)

PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where it is and how to mend it."""

    file: str
    line: int
    entry: str
    field: str
    rule: str
    severity: Severity
    message: str
    mend: str

    def __str__(self) -> str:
        where = " ".join(part for part in (self.entry, self.field) if part)
        text = f"{self.file}:{self.line}: {self.severity}: {where + ': ' if where else ''}"
        line = f"{text}{self.message}; {self.mend} [{self.rule}]"
        # What stands in the file must not move the cursor of who reads the report.
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)

    def as_json(self) -> dict[str, str | int]:
        """The fields by name."""
        return asdict(self)


class Unreadable(Exception):
    """The file cannot be taken apart at all; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Tree:
    """Plain data with the line (from 1) of every key and list item."""

    file: str
    data: Any
    lines: Mapping[FieldPath, int]
    raw: Mapping[FieldPath, str]
    """Source of plain scalars that were read as something other than text."""
    texts: Mapping[str, Sequence[FieldPath]]
    """Every text that is a value, once, with the places where it stands."""
    problems: tuple[Problem, ...]

    def line(self, path: FieldPath) -> int:
        """Line of `path`, or of the nearest thing around it that is in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


@dataclass(frozen=True, slots=True)
class Entry(Generic[R]):
    """A valid record and its place in the file."""

    section: str
    index: int
    record: R

    @property
    def path(self) -> FieldPath:
        return (self.section, self.index)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything that was read: the valid records, and the problems of the others."""

    tree: Tree
    papers: tuple[Entry[Paper], ...]
    tools: tuple[Entry[Tool], ...]
    tutorials: tuple[Entry[Tutorial], ...]
    problems: tuple[Problem, ...]
    ids: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Every id that stands in the file by section, also those of entries that are not valid."""
    places: Mapping[FieldPath, Entry[Any]] = field(default_factory=dict)
    """Valid entries by section and index."""

    @property
    def entries(self) -> tuple[Entry[Paper] | Entry[Tool] | Entry[Tutorial], ...]:
        """All records in file order of their sections."""
        return (*self.papers, *self.tools, *self.tutorials)

    def line(self, entry: Entry[Any], path: FieldPath = ()) -> int:
        """Line of a field of an entry."""
        return self.tree.line((*entry.path, *path))

    @property
    def texts(self) -> Iterable[str]:
        """Every distinct text of the file; most rules look at each once."""
        return self.tree.texts

    def where(self, text: str) -> Iterator[tuple[Entry[Any], FieldPath]]:
        """The valid entries that hold `text`, and in which field."""
        for path in self.tree.texts[text]:
            entry = self.places.get(path[:2])
            if entry is not None:
                yield entry, path[2:]


# --------------------------------------------------------------------------- bytes to text

_CONFLICT = re.compile(r"^(?:<{7}|>{7}|\|{7}|={7})(?: .*)?\r?$", re.MULTILINE)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff\ufeff]")


def _refuse(file: str, line: int, rule: str, message: str, mend: str) -> Unreadable:
    return Unreadable(Problem(file, line, "", "", rule, "error", message, mend))


def read_text(path: Path) -> str:
    """The text of `path`.

    Raises:
        Unreadable: when it is missing, too large, not UTF-8, empty, or holds control characters,
            tabs or the marks of an unfinished merge.
    """
    file = path.name
    try:
        if not path.is_file():
            raise _refuse(file, 1, "no-file", f"{path} is not a file", "name an existing file")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refuse(
            file, 1, "no-file", f"cannot be read: {error.strerror}", "check it"
        ) from error
    if len(data) > MAX_BYTES:
        raise _refuse(
            file,
            1,
            "too-large",
            f"the file is larger than {MAX_BYTES // 2**20} MB",
            "give the literature file; data belongs elsewhere",
        )
    return decode(data, file)


def decode(data: bytes, file: str) -> str:
    """`data` as checked text; see `read_text` for what is refused."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refuse(
            file,
            line,
            "not-utf8",
            f"byte {data[error.start]:#04x} at offset {error.start} is not UTF-8",
            "save the file as UTF-8",
        ) from error
    if not text.strip():
        raise _refuse(file, 1, "empty", "the file is empty", "restore papers.yaml")
    checks = (
        (_CONTROL, "control-character", "a control character", "delete it"),
        (_CONFLICT, "merge-conflict", "a mark of an unfinished merge", "resolve the conflict"),
        (re.compile("\t"), "tab", "a tab", "use spaces"),
    )
    for pattern, rule, what, mend in checks:
        if match := pattern.search(text):
            line = text.count("\n", 0, match.start()) + 1
            shown = f" (U+{ord(match.group()):04X})" if rule == "control-character" else ""
            raise _refuse(file, line, rule, f"{what}{shown} stands in this line", mend)
    return text


# --------------------------------------------------------------------------- text to data

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]{1,30}\.[0-9]{0,30}|\.[0-9]{1,30}|[0-9]{1,18}(?=[eE]))"
    r"(?:[eE][-+]?[0-9]{1,4})?"
)
_AMBIGUOUS = re.compile(
    r"(?:True|TRUE|False|FALSE|Null|NULL|[yYnN]|[yY]es|YES|[nN]o|NO|[oO]n|ON|[oO]ff|OFF)"
    r"|[-+]?0[0-9_]+|[-+]?0[xob][0-9a-fA-F_]+|[-+]?[0-9][0-9_,]*_[0-9_]*(?:\.[0-9_]*)?"
    r"|[-+]?[0-9]+(?::[0-9]{1,2})+(?:\.[0-9]*)?|[-+]?[0-9]{19,}"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt ].*)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_CONSTANTS: Mapping[str, bool | None] = {
    "": None,
    "~": None,
    "null": None,
    "true": True,
    "false": False,
}
_LONGEST_SPECIAL = 64  # longer scalars are text; also keeps the patterns below cheap
_MAY_BE_SPECIAL = frozenset("0123456789+-.~tfnTFNyYoO")


def _plain(text: str) -> tuple[Any, bool]:
    """Value of a plain scalar, and whether YAML readers disagree about it."""
    if text and text[0] not in _MAY_BE_SPECIAL:
        return text, False
    if text in _CONSTANTS:
        return _CONSTANTS[text], False
    if len(text) > _LONGEST_SPECIAL:
        return text, False
    if _INT.fullmatch(text):
        return int(text), False
    if _FLOAT.fullmatch(text):
        return float(text), False
    return text, _AMBIGUOUS.fullmatch(text) is not None


@contextmanager
def _collector_paused() -> Iterator[None]:
    # Reading makes hundreds of thousands of objects and no cycles; scanning them for cycles again
    # and again takes a third of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_collector_paused()
def parse(text: str, file: str) -> Tree:
    """Plain data and lines of a checked text.

    Keys that occur twice and scalars that YAML readers take for different things are gathered as
    problems; the first of two keys wins.

    Raises:
        Unreadable: on broken YAML, aliases, anchors, tags, merge keys, several documents, nesting
            deeper than `MAX_DEPTH`, collections longer than `MAX_ITEMS`, more than `MAX_NODES`
            keys and values in all, or keys that are not text.
    """
    lines: dict[FieldPath, int] = {}
    raw: dict[FieldPath, str] = {}
    texts: dict[str, list[FieldPath]] = {}
    problems: list[Problem] = []
    try:
        data = _build(text, file, lines, raw, texts, problems)
    except yaml.YAMLError as error:
        mark: Any = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "is not YAML"
        context = getattr(error, "context", None)
        raise _refuse(
            file,
            mark.line + 1 if mark else 1,
            "yaml-syntax",
            f"not valid YAML: {what}{f' ({context})' if context else ''}".replace("\n", " "),
            "check indentation, quotes and brackets here and in the line above",
        ) from error
    return Tree(file, data, lines, raw, texts, tuple(problems))


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not been reached."""

    container: Any
    path: FieldPath
    key: str | None = None
    """Key that waits for its value."""
    keep: bool = True
    """False while the value of a repeated key is read and thrown away."""


def _build(
    text: str,
    file: str,
    lines: dict[FieldPath, int],
    raw: dict[FieldPath, str],
    texts: dict[str, list[FieldPath]],
    problems: list[Problem],
) -> Any:
    root: list[Any] = []
    top = _Open(root, ())
    stack = [top]
    documents = nodes = 0
    event: Any
    for event in yaml.parse(text, Loader=PARSER):
        kind = type(event)
        if kind in _ENDS:
            stack.pop()
            top = stack[-1]
            continue
        if kind not in _NODES:
            documents += kind is yaml.DocumentStartEvent
            if kind is yaml.AliasEvent or documents > 1:
                raise _unwanted(file, event)
            continue
        line = event.start_mark.line + 1
        if event.anchor is not None or event.tag is not None:
            raise _unwanted(file, event)
        container = top.container
        nodes += 1
        if len(container) >= MAX_ITEMS or nodes > MAX_NODES or len(problems) >= MAX_PROBLEMS:
            raise _too_many(file, line, len(container), nodes)
        is_map = type(container) is dict
        if is_map and top.key is None:
            top.key = key = _key(event, file, line)
            top.keep = key not in container
            if not top.keep:
                path = (*top.path, key)
                problems.append(_duplicate(file, path, line, lines[path]))
                top.key = f"{key} (repeated)"
            lines[(*top.path, top.key)] = line
            continue
        if top.key is not None:
            path = (*top.path, top.key)
        elif len(stack) > 1:
            path = (*top.path, len(container))
            lines[path] = line
        else:
            path = ()
        value: Any
        if kind is yaml.ScalarEvent:
            value = event.value
            if event.implicit[0]:
                value, ambiguous = _plain(value)
                if ambiguous:
                    problems.append(_ambiguous(file, path, line, event.value))
                elif value.__class__ is not str:
                    raw[path] = event.value
            if value.__class__ is str:
                texts.setdefault(value, []).append(path)
        else:
            value = {} if kind is yaml.MappingStartEvent else []
        if not is_map:
            container.append(value)
        else:
            if top.keep:
                container[top.key] = value
            top.key = None
        if kind is not yaml.ScalarEvent:
            if len(stack) > MAX_DEPTH:
                raise _refuse(
                    file,
                    line,
                    "too-deep",
                    f"nesting is deeper than {MAX_DEPTH} levels",
                    "an entry needs five; check the brackets",
                )
            top = _Open(value, path)
            stack.append(top)
    return root[0] if root else None


_NODES = frozenset({yaml.ScalarEvent, yaml.MappingStartEvent, yaml.SequenceStartEvent})
_ENDS = frozenset({yaml.MappingEndEvent, yaml.SequenceEndEvent})


def _too_many(file: str, line: int, items: int, nodes: int) -> Unreadable:
    """Which of the bounds is reached; what follows is not read."""
    if items >= MAX_ITEMS:
        message = f"a list or mapping has more than {MAX_ITEMS} items"
    elif nodes > MAX_NODES:
        message = f"the file holds more than {MAX_NODES} keys and values"
    else:
        message = f"{MAX_PROBLEMS} problems stand above this line"
    return _refuse(file, line, "too-many", message, "give the literature file")


def _unwanted(file: str, event: Any) -> Unreadable:
    """Why an alias, anchor, tag or second document is refused."""
    line = event.start_mark.line + 1
    if type(event) is yaml.AliasEvent:
        return _refuse(file, line, "alias", "an alias (*) stands here", "write the value in full")
    if type(event) is yaml.DocumentStartEvent:
        return _refuse(file, line, "documents", "a second document starts here", "remove the ---")
    if event.anchor is not None:
        return _refuse(
            file, line, "anchor", f"an anchor (&{event.anchor[:60]}) stands here", "remove it"
        )
    return _refuse(
        file,
        line,
        "tag",
        f"a tag ({str(event.tag)[:60]}) stands here",
        "remove it; only plain text, numbers, lists and mappings are read",
    )


def _key(event: Any, file: str, line: int) -> str:
    if type(event) is not yaml.ScalarEvent:
        raise _refuse(file, line, "key", "a key is a list or mapping", "keys are single words")
    if event.value == "<<" and event.implicit[0]:
        raise _refuse(file, line, "merge-key", "a merge key (<<) stands here", "write it out")
    return str(event.value)[:200].replace("\n", " ")


def _duplicate(file: str, path: FieldPath, line: int, first: int) -> Problem:
    return Problem(
        file,
        line,
        entry_name(path, None),
        field_name(in_entry(path)),
        "duplicate-key",
        "error",
        f"{path[-1]} stands here a second time, first in line {first}",
        "keep one of the two",
    )


def _ambiguous(file: str, path: FieldPath, line: int, text: str) -> Problem:
    shown = text[:60]
    return Problem(
        file,
        line,
        entry_name(path, None),
        field_name(in_entry(path)),
        "ambiguous-scalar",
        "error",
        f"{shown} is text to some readers of YAML and something else to others",
        f"write it in quotes: '{shown}'"
        if shown.lower() not in {"true", "false", "null"}
        else f"write {shown.lower()}",
    )


# --------------------------------------------------------------------------- names of places


def field_name(path: FieldPath) -> str:
    """A path within an entry as people write it: `results[2].measures[0].value`."""
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def in_entry(path: FieldPath) -> FieldPath:
    """The part of a path from the top of the file that lies within an entry."""
    return path[2:] if len(path) > 1 and path[0] in RECORDS else path


def entry_name(path: FieldPath, data: Any) -> str:
    """The id of the entry that `path` lies in, or its place when it has none."""
    if len(path) < 2 or path[0] not in RECORDS:
        return ""
    try:
        identifier = data[path[0]][path[1]]["id"]
    except (KeyError, IndexError, TypeError):
        identifier = None
    return identifier if isinstance(identifier, str) else f"{path[0]}[{path[1]}]"


# --------------------------------------------------------------------------- data to records

_EXPECTED: Mapping[str, str] = {
    "id": "use lower-case letters, digits and single hyphens, such as 'diff-pruning'",
    "to": "give the id of another entry",
    "arxiv": "give the id alone, without version or address: '2305.10924'",
    "doi": "give the DOI alone: '10.1145/3746027.3755081'",
    "openreview": "give the forum id alone: 't9m14jybcI'",
    "dblp": "give the key, such as 'conf/nips/Fang0W23'",
    "hub": "give owner/name without the address",
    "first_posted": "write a date as '2023-05-18'",
    "date": "write a date as '2023-05-18'",
    "checked": "write a date as '2023-05-18'",
    "resolution": "write width x height, such as 512x512",
    "pattern": "write n kept of m in quotes: '2:4'",
    "commit": "give 7 to 40 hexadecimal digits in quotes",
    "sources": "write github:owner/repo@commit path, arxiv:id, doi:…, openreview:… or https://…",
    "document": "write github:owner/repo@commit path, arxiv:id, doi:…, openreview:… or https://…",
    "evidence": "write github:owner/repo@commit path, arxiv:id, doi:…, openreview:… or https://…",
    "source": "write github:owner/repo@commit path, arxiv:id, doi:…, openreview:… or https://…",
    "schema_version": "write '1.0' in quotes",
    "url": "give a full address that starts with https://",
}


def _mend(kind: str, path: FieldPath, context: Mapping[str, Any], raw: str | None) -> str:
    name = next((str(p) for p in reversed(path) if isinstance(p, str)), "")
    if kind == "missing":
        return "add it"
    if kind == "string_type" and raw:
        return f"write it in quotes: '{raw}'"
    if kind in ("string_pattern_mismatch", "literal_error") and name in _EXPECTED:
        return _EXPECTED[name]
    if kind == "string_pattern_mismatch":
        return "remove line breaks and spaces at its ends"
    if kind == "tuple_type":
        return "write a list: [a, b], or one item a line after a dash"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return "write keys with values beneath it"
    if kind == "string_too_long":
        return f"shorten it to {context['max_length']} characters"
    if kind == "string_too_short":
        return f"write at least {context['min_length']} characters"
    if kind == "less_than_equal" and context["le"] == 1:
        return "write a fraction: 0.44 for 44 %"
    if kind in ("less_than_equal", "greater_than_equal"):
        return "correct it; the field reference says what the number is"
    if kind in ("int_type", "float_type", "bool_type"):
        return "write it without quotes, and without a unit"
    return "correct it, or remove the key"


_MESSAGES: Mapping[str, str] = {
    "missing": "is missing",
    "tuple_type": "should be a list",
    "model_type": "should be a mapping",
    "model_attributes_type": "should be a mapping",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "finite_number": "should be a finite number",
    "too_short": "should not be an empty list",
}


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text[:400].split())
    return f"'{text[:60]}…'" if len(text) > 60 else f"'{text}'"


def _describe(
    error: Mapping[str, Any], record: type[BaseModel], raw: str | None
) -> tuple[str, str]:
    """Message and mend of one pydantic error."""
    kind, path, value = error["type"], tuple(error["loc"]), error["input"]
    context = error.get("ctx", {})
    name = str(path[-1]) if path else ""
    if kind == "extra_forbidden":
        known = _known_keys(record, path[:-1])
        close = difflib.get_close_matches(name, known, 1)
        return "is not a field here", (
            f"did you mean {close[0]}?" if close else f"use one of: {', '.join(known)}"
        )
    if kind == "enum":
        words = re.findall(r"'([^']*)'", context["expected"])
        close = difflib.get_close_matches(str(value)[:80], words, 1, 0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{_shown(value)} is not in the vocabulary", f"{hint}use one of: {', '.join(words)}"
    if kind == "value_error":
        return str(context["error"]), "see the field reference"
    if value is None and kind != "missing":
        return "has no value", "give one, or remove the key"
    if kind == "string_type":
        shown = raw or _shown(value)
        return f"{shown} is read as {_type_name(value)}, not as text", _mend(
            kind, path, context, raw
        )
    if kind in _MESSAGES:
        return _MESSAGES[kind], _mend(kind, path, context, raw)
    if kind == "string_pattern_mismatch" or kind == "literal_error":
        return f"{_shown(value)} has the wrong form", _mend(kind, path, context, raw)
    if kind == "less_than_equal":
        return f"{_shown(value)} is above {context['le']:g}", _mend(kind, path, context, raw)
    if kind == "greater_than_equal":
        return f"{_shown(value)} is below {context['ge']:g}", _mend(kind, path, context, raw)
    if kind == "string_too_long":
        return f"has {len(value)} characters", _mend(kind, path, context, raw)
    if kind == "string_too_short":
        return f"has only {len(value)} characters", _mend(kind, path, context, raw)
    message = str(error["msg"])
    return f"{_shown(value)}: {message[0].lower()}{message[1:]}", _mend(kind, path, context, raw)


def _type_name(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "text" if isinstance(value, str) else "a mapping")


def _known_keys(record: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    schema: Any = TypeAdapter(record).json_schema()
    root = schema
    for part in path:
        while "$ref" in schema:
            schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
        if isinstance(part, int):
            schema = schema.get("items", {})
        else:
            schema = schema.get("properties", {}).get(part, {})
        schema = next((s for s in schema.get("anyOf", ()) if s.get("type") != "null"), schema)
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return list(schema.get("properties", {}))


def _schema_problems(
    tree: Tree, prefix: FieldPath, record: type[BaseModel], error: ValidationError
) -> list[Problem]:
    already = {(p.line, p.field) for p in tree.problems}
    items = error.errors(include_url=False)[:MAX_PROBLEMS]
    # A list whose items failed is also reported as too short: only the items matter.
    failed = {item["loc"][:n] for item in items for n in range(len(item["loc"]))}
    found = []
    for item in items:
        path = (*prefix, *item["loc"])
        line = tree.line(path)
        name = field_name(in_entry(path))
        if (line, name) in already or (item["type"] == "too_short" and item["loc"] in failed):
            continue
        message, mend = _describe(item, record, tree.raw.get(path))
        rule = f"schema-{item['type'].replace('_', '-')}"
        entry = entry_name(path, tree.data)
        found.append(Problem(tree.file, line, entry, name, rule, "error", message, mend))
    return found


def _records(tree: Tree, section: str, record: type[R]) -> tuple[list[Entry[R]], list[Problem]]:
    values = tree.data.get(section)
    entries: list[Entry[R]] = []
    problems: list[Problem] = []
    if values is None and section != "papers" and section not in tree.data:
        return entries, problems
    if not isinstance(values, list):
        line = tree.line((section,))
        message = "is missing" if section not in tree.data else "should be a list of entries"
        mend = f"write {section}: and the entries beneath, each after a dash"
        return entries, [
            Problem(tree.file, line, "", section, "schema-list", "error", message, mend)
        ]
    for index, value in enumerate(values):
        try:
            entries.append(Entry(section, index, record.model_validate(value)))
        except ValidationError as error:
            problems += _schema_problems(tree, (section, index), record, error)
            if len(problems) > MAX_PROBLEMS:
                break
    return entries, problems


@_collector_paused()
def corpus(tree: Tree) -> Corpus:
    """The records of a tree; those that do not fit the schema become problems.

    Raises:
        Unreadable: when the top level is not a mapping.
    """
    data = tree.data
    if not isinstance(data, dict):
        raise _refuse(
            tree.file,
            tree.line((0,)),
            "not-a-mapping",
            f"the top level is {_type_name(data) if data is not None else 'empty'}",
            "begin with schema_version:, papers:, tools:, tutorials:",
        )
    papers, a = _records(tree, "papers", Paper)
    tools, b = _records(tree, "tools", Tool)
    tutorials, c = _records(tree, "tutorials", Tutorial)
    problems = [
        Problem(p.file, p.line, _named(p, data), p.field, p.rule, p.severity, p.message, p.mend)
        for p in tree.problems
    ]
    problems += _top_level(tree) + a + b + c
    entries: tuple[Entry[Any], ...] = (*papers, *tools, *tutorials)
    ids = {
        section: frozenset(
            e["id"]
            for e in (data[section] if isinstance(data.get(section), list) else ())
            if isinstance(e, dict) and isinstance(e.get("id"), str)
        )
        for section in RECORDS
    }
    return Corpus(
        tree,
        tuple(papers),
        tuple(tools),
        tuple(tutorials),
        tuple(sorted(problems, key=lambda p: p.line)[:MAX_PROBLEMS]),
        ids,
        {entry.path: entry for entry in entries},
    )


def _named(problem: Problem, data: Any) -> str:
    match = re.fullmatch(r"(\w+)\[(\d+)\]", problem.entry)
    return entry_name((match[1], int(match[2])), data) if match else problem.entry


def _top_level(tree: Tree) -> list[Problem]:
    # The entries are validated one by one elsewhere, so that one bad entry does not hide the rest.
    outline = {k: () if k in RECORDS else v for k, v in tree.data.items()} | {"papers": ()}
    try:
        Literature.model_validate(outline)
    except ValidationError as error:
        return _schema_problems(tree, (), Literature, error)
    return []


def load(path: Path) -> Corpus:
    """Read and validate `path` against the schema; cross-record rules are in `kb.rules`.

    Raises:
        Unreadable: when the file cannot be taken apart.
    """
    return corpus(parse(read_text(path), path.name))


def load_literature(path: Path) -> Literature:
    """The whole file as one record, for what renders and exports it.

    Raises:
        Unreadable: on the first problem of any kind.
    """
    found = load(path)
    if found.problems:
        raise Unreadable(found.problems[0])
    return Literature(
        schema_version=found.tree.data["schema_version"],
        papers=_only(found.papers),
        tools=_only(found.tools),
        tutorials=_only(found.tutorials),
    )


def _only(entries: Sequence[Entry[R]]) -> tuple[R, ...]:
    return tuple(entry.record for entry in entries)
