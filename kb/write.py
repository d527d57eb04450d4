"""The one canonical way to write papers.yaml."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml  # type: ignore[import-untyped,unused-ignore]
from pydantic import BaseModel

from kb.files import replace_file
from kb.load import PARSER, Problem, Tree, Unreadable, parse
from kb.schema import RECORDS, Literature, field_order

HEADER = "# yaml-language-server: $schema=schema/papers.schema.json\n"
WIDTH = 100

# Plain scalars that YAML 1.1 or 1.2 readers take for something other than text.
_NOT_TEXT = re.compile(
    r"""^(?:~|null|Null|NULL|true|True|TRUE|false|False|FALSE
    |y|Y|yes|Yes|YES|n|N|no|No|NO|on|On|ON|off|Off|OFF
    |[-+]?\.?[0-9][0-9_.,:eE+-]*|0[xob][0-9a-fA-F_]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)|<<|=)$""",
    re.VERBOSE,
)
_PLAIN = re.compile(r"^[^\W_](?:[\w .;/()+'%×–’&*=~^|§<>\"@-]|,(?= )|:(?=\S)|#(?<=\S#))*$")


def _needs_quotes(text: str, flow: bool) -> bool:
    return (
        not _PLAIN.match(text)
        or text.endswith((" ", ":"))
        or " #" in text
        or _NOT_TEXT.match(text) is not None
        or (flow and ("," in text or ":" in text))
    )


def _scalar(value: object, flow: bool = False) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    if not text.isprintable():
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else _escape(c) for c in escaped) + '"'
    if _needs_quotes(text, flow):
        return "'" + text.replace("'", "''") + "'"
    return text


def _escape(char: str) -> str:
    code = ord(char)
    return {10: "\\n", 9: "\\t"}.get(code) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def _flow(value: object) -> str | None:
    """`value` on one line, or None when it holds a list or mapping inside a list or mapping."""
    if isinstance(value, Mapping):
        if any(isinstance(v, (Mapping, list, tuple)) for v in value.values()):
            return None
        return "{" + ", ".join(f"{k}: {_scalar(v, True)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        if any(isinstance(v, (Mapping, list, tuple)) for v in value):
            return None
        return "[" + ", ".join(_scalar(v, True) for v in value) + "]"
    return _scalar(value)


def _folded(text: str, indent: int) -> list[str] | None:
    """`text` as the lines of a folded block, or None where folding would change it."""
    words = text.split(" ")
    if not text.isprintable() or "" in words or max(map(len, words)) > WIDTH - indent:
        return None
    lines = textwrap.wrap(text, WIDTH - indent, break_long_words=False, break_on_hyphens=False)
    return [" " * indent + line for line in lines]


def _item(prefix: str, value: object, indent: int) -> list[str]:
    """Lines of `prefix` (a key with colon, or a dash) followed by `value`."""
    flow = _flow(value)
    one_line = None if flow is None else f"{prefix} {flow}"
    is_text = isinstance(value, str)
    long_list = isinstance(value, (list, tuple)) and any(len(str(v)) > 30 for v in value)
    if one_line is not None and len(one_line) <= WIDTH and not long_list:
        return [one_line]
    if is_text:
        folded = _folded(str(value), indent + 2)
        return [one_line or ""] if folded is None else [f"{prefix} >-", *folded]
    if isinstance(value, Mapping):
        lines = _mapping(value, indent + 2)
        if prefix.endswith("-"):
            return [f"{prefix} {lines[0].lstrip()}", *lines[1:]]
        return [prefix, *lines]
    if isinstance(value, (list, tuple)):
        lines = [prefix]
        for element in value:
            lines += _item(" " * (indent + 2) + "-", element, indent + 2)
        return lines
    return [one_line or ""]


def _mapping(value: Mapping[str, Any], indent: int) -> list[str]:
    lines: list[str] = []
    for key, element in value.items():
        lines += _item(f"{' ' * indent}{_scalar(key)}:", element, indent)
    return lines


def _nested_record(record: type[BaseModel], name: str) -> type[BaseModel] | None:
    def find(annotation: object) -> type[BaseModel] | None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        return next((r for a in get_args(annotation) if (r := find(a))), None)

    field = record.model_fields.get(name)
    return None if field is None else find(field.annotation)


def ordered(value: Mapping[str, Any], record: type[BaseModel]) -> dict[str, Any]:
    """`value` with its keys, at every level, in the order in which the schema declares them.

    Keys that the schema does not know keep their place at the end.
    """
    rank = {name: i for i, name in enumerate(field_order(record))}
    result: dict[str, Any] = {}
    for key in sorted(value, key=lambda k: rank.get(k, len(rank))):
        element = value[key]
        inner = _nested_record(record, key)
        if inner is not None and isinstance(element, Mapping):
            element = ordered(element, inner)
        elif inner is not None and isinstance(element, (list, tuple)):
            element = [ordered(e, inner) if isinstance(e, Mapping) else e for e in element]
        result[key] = element
    return result


def format_entry(entry: Mapping[str, Any], record: type[BaseModel]) -> str:
    """One list item of papers.yaml in canonical form, with its final newline."""
    first, *rest = _mapping(ordered(entry, record), 4)
    return "\n".join([f"  - {first.lstrip()}", *rest]) + "\n"


def format_document(data: Mapping[str, Any]) -> str:
    """The whole of papers.yaml in canonical form: keys in schema order, entries sorted by id."""
    parts = [HEADER]
    rank = {name: i for i, name in enumerate(field_order(Literature))}
    for key in sorted(data, key=lambda k: rank.get(k, len(rank))):
        value = data[key]
        if key not in RECORDS or not value:
            parts.append("\n".join(_item(f"{_scalar(key)}:", value, 0)) + "\n")
            continue
        parts.append(f"\n{key}:\n")
        entries = sorted(value, key=lambda e: str(e.get("id", "")))
        parts.append("\n".join(format_entry(e, RECORDS[key]) for e in entries))
    return "".join(parts)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step: readers see the old file or the new one."""
    replace_file(path, text.encode())


# --------------------------------------------------------------------------- whole files


def comment_lines(text: str) -> tuple[int, ...]:
    """Lines (from 1) that hold a comment; a `#` inside a value is none.

    `text` must be valid YAML.
    """
    spans: list[tuple[int, int]] = []
    event: Any
    for event in yaml.parse(text, Loader=PARSER):
        kind = type(event)
        if kind is yaml.ScalarEvent:
            spans.append((event.start_mark.index, event.end_mark.index))
    found = []
    next_span = 0
    for match in re.finditer(r"(?:^|(?<=\s))#", text, re.MULTILINE):
        while next_span < len(spans) and spans[next_span][1] <= match.start():
            next_span += 1
        if next_span == len(spans) or match.start() < spans[next_span][0]:
            found.append(text.count("\n", 0, match.start()) + 1)
    return tuple(found)


def format_text(text: str, file: str = "papers.yaml") -> str:
    """`text` in canonical form; formatting twice changes nothing more.

    Raises:
        Unreadable: when the text cannot be parsed, has repeated keys or ambiguous scalars, or holds
            comments other than before the first key, because they would be lost.
    """
    tree = parse(text, file)
    if tree.problems:
        raise Unreadable(tree.problems[0])
    if not isinstance(tree.data, dict):
        raise Unreadable(
            _problem(file, 1, "not-a-mapping", "the top level is no mapping", "see kb")
        )
    first = min(tree.lines.values(), default=1)
    lost = next((line for line in comment_lines(text) if line >= first), None)
    if lost is not None:
        message = "a comment stands here, and formatting would lose it"
        raise Unreadable(_problem(file, lost, "comment", message, "move it to notes:"))
    document = format_document(tree.data)
    kept = [line.rstrip() for line in text.splitlines()[: first - 1] if line.lstrip()[:1] == "#"]
    extra = [line for line in kept if line.strip() != HEADER.strip()]
    return HEADER + "".join(f"{line}\n" for line in extra) + document.removeprefix(HEADER)


def _problem(file: str, line: int, rule: str, message: str, mend: str) -> Problem:
    return Problem(file, line, "", "", rule, "error", message, mend)


def insert_entry(
    text: str, section: str, entry: Mapping[str, Any], file: str = "papers.yaml"
) -> str:
    """`text` with `entry` in its place by id; every other byte stays as it was.

    Args:
        text: A readable literature file, in any formatting.
        section: `papers`, `tools` or `tutorials`.
        entry: Plain data as in YAML, with an `id`.

    Raises:
        Unreadable: when the text cannot be parsed, has repeated keys, or already holds the id.
        KeyError: for an unknown section.
    """
    record = RECORDS[section]
    tree = parse(text, file)
    if tree.problems:
        raise Unreadable(tree.problems[0])
    old = tree.data.get(section) if isinstance(tree.data, dict) else None
    present = old or []
    if not isinstance(tree.data, dict) or not isinstance(present, list):
        message = f"{section} is not a list of entries"
        raise Unreadable(_problem(file, tree.line((section,)), "schema-list", message, "mend it"))
    new_id = str(entry["id"])
    ids = [str(e.get("id", "")) if isinstance(e, dict) else "" for e in present]
    if new_id in ids:
        line = tree.line((section, ids.index(new_id)))
        message = f"the id {new_id} is taken"
        raise Unreadable(_problem(file, line, "duplicate-id", message, "choose another"))
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    at = next((i for i, other in enumerate(ids) if other > new_id), len(ids))
    block = format_entry(entry, record)
    if not present:
        result = _into_empty(lines, tree, section, block, newline)
    else:
        result = _between(lines, tree, section, at, len(ids), block, newline)
    _check_insertion(result, tree.data, section, at, entry, file)
    return result


def _into_empty(lines: list[str], tree: Tree, section: str, block: str, newline: str) -> str:
    block = f"{section}:\n{block}".replace("\n", newline)
    if section in tree.data:
        row = tree.line((section,)) - 1
        return "".join([*lines[:row], block, *lines[row + 1 :]])
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += newline
    return "".join([*lines, newline, block])


def _between(
    lines: list[str], tree: Tree, section: str, at: int, count: int, block: str, newline: str
) -> str:
    dash = lines[tree.line((section, 0)) - 1]
    indent = len(dash) - len(dash.lstrip(" "))
    shift = indent - 2
    if shift:
        block = "".join(
            " " * (len(row) - len(row.lstrip(" ")) + shift) + row.lstrip(" ")
            for row in block.splitlines(keepends=True)
        )
    if at < count:
        row = tree.line((section, at)) - 1
        while row and lines[row - 1].lstrip().startswith("#"):  # comments belong to what follows
            row -= 1
        block += "\n"
    else:
        following = [
            line for path, line in tree.lines.items() if len(path) == 1 and path[0] != section
        ]
        start = tree.line((section,))
        row = min((line for line in following if line > start), default=len(lines) + 1) - 1
        while row and (not lines[row - 1].strip() or lines[row - 1].startswith("#")):
            row -= 1
        if not lines[row - 1].endswith("\n"):
            lines[row - 1] += newline
        block = "\n" + block
    return "".join([*lines[:row], block.replace("\n", newline), *lines[row:]])


def _check_insertion(
    text: str, before: Any, section: str, at: int, entry: Mapping[str, Any], file: str
) -> None:
    # The text was edited by line; prove on the data that nothing else moved.
    wanted = dict(before)
    present = list(wanted.get(section) or [])
    wanted[section] = [*present[:at], _plain_data(entry), *present[at:]]
    if parse(text, file).data != wanted:
        message = f"{entry['id']} cannot be inserted without changing other text"
        raise Unreadable(_problem(file, 1, "insert", message, "run scripts/format.py first"))


def _plain_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain_data(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_data(v) for v in value]
    return str(value) if isinstance(value, str) else value
