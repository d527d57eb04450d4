"""The one canonical way to write papers.yaml, and writing without ever leaving half a file."""

from __future__ import annotations

import os
import re
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

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
    directory = path.parent
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="\n", dir=directory, prefix=f".{path.name}.", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            if path.exists():
                temporary.chmod(path.stat().st_mode & 0o777)
            else:
                temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
