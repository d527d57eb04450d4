"""What changed between two versions of papers.yaml, in words that a reviewer can judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kb.schema import RECORDS, title_key
from kb.text import plain

Kind = Literal["added", "removed", "renamed", "changed"]
Plain = Mapping[str, Any]

# What a record inside a list is known by, so that it is followed through changes of order.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "results": ("id",),
    "code": ("url",),
    "relations": ("type", "to"),
    "measures": ("metric", "note"),
}
_NAMES: Mapping[str, tuple[str, str]] = {
    "results": ("result", "results"),
    "code": ("code link", "code links"),
    "relations": ("relation", "relations"),
}
_IDENTIFIERS = ("arxiv", "doi", "openreview")
_LONGEST = 80


@dataclass(frozen=True, slots=True)
class EntryChange:
    """One entry that was added, removed, renamed or changed."""

    section: str
    id: str
    kind: Kind
    changes: tuple[str, ...]
    """What changed in it, one plain sentence each, unescaped."""
    old_id: str | None = None
    """The former id of a renamed entry."""

    @property
    def headline(self) -> str:
        """The change as a whole: `diff-pruning changed`."""
        if self.kind == "renamed":
            return f"{self.old_id} renamed to {self.id}"
        return f"{self.id} {self.kind}"


def differences(old: Plain, new: Plain) -> tuple[EntryChange, ...]:
    """Changes from `old` to `new`, plain data of two literature files, by section and id.

    An entry that vanished while one with the same arXiv id, DOI, OpenReview id or title appeared
    counts as renamed. Entries that cannot be told apart (no id, or the same id twice) are left to
    the validator.
    """
    found: list[EntryChange] = []
    for section in RECORDS:
        before, after = _by_id(old.get(section)), _by_id(new.get(section))
        gone = [id for id in before if id not in after]
        come = [id for id in after if id not in before]
        renamed = _renamed({id: before[id] for id in gone}, {id: after[id] for id in come})
        for id in come:
            if id in renamed:
                lines = _fields(before[renamed[id]], after[id], ("id",))
                found.append(EntryChange(section, id, "renamed", lines, renamed[id]))
            else:
                found.append(EntryChange(section, id, "added", _outline(after[id])))
        moved = set(renamed.values())
        found += [EntryChange(section, id, "removed", ()) for id in gone if id not in moved]
        for id in before:
            if id in after and before[id] != after[id]:
                lines = _fields(before[id], after[id])
                if lines:
                    found.append(EntryChange(section, id, "changed", lines))
    order = {section: rank for rank, section in enumerate(RECORDS)}
    found.sort(key=lambda change: (order[change.section], change.id, change.kind))
    version = (old.get("schema_version"), new.get("schema_version"))
    if version[0] != version[1]:
        line = f"schema version: {_shown(version[0])} -> {_shown(version[1])}"
        found.insert(0, EntryChange("file", "schema_version", "changed", (line,)))
    return tuple(found)


def _by_id(entries: object) -> dict[str, Plain]:
    found: dict[str, Plain] = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), str):
            found.setdefault(entry["id"], entry)
    return found


def _renamed(gone: Mapping[str, Plain], come: Mapping[str, Plain]) -> dict[str, str]:
    """The former id of each new id that stands for the same work."""
    marks: dict[tuple[str, str], str] = {}
    for id, entry in gone.items():
        for mark in _marks(entry):
            marks.setdefault(mark, id)
    pairs: dict[str, str] = {}
    taken: set[str] = set()
    for id, entry in come.items():
        former = next((marks[m] for m in _marks(entry) if m in marks), None)
        if former is not None and former not in taken:
            pairs[id] = former
            taken.add(former)
    return pairs


def _marks(entry: Plain) -> Iterator[tuple[str, str]]:
    for name in (*_IDENTIFIERS, "url"):
        if isinstance(entry.get(name), str):
            yield name, entry[name].lower()
    title = entry.get("title") or entry.get("name")
    if isinstance(title, str) and title_key(title):
        yield "title", title_key(title)


def _outline(entry: Plain) -> tuple[str, ...]:
    """What a new entry is, in a few lines."""
    lines = [f"{name}: {_shown(entry[name])}" for name in ("title", "name") if name in entry]
    if isinstance(entry.get("publication"), dict):
        lines.append(f"venue: {_venue(entry['publication'])}")
    lines += [f"{name}: {_shown(entry[name])}" for name in ("arxiv", "doi", "url") if name in entry]
    rows = entry.get("results")
    if isinstance(rows, list) and rows:
        lines.append(_counted("+", len(rows), "results"))
    return tuple(lines)


def _fields(old: Plain, new: Plain, without: Sequence[str] = ()) -> tuple[str, ...]:
    lines: list[str] = []
    for name in sorted({*old, *new} - set(without)):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name == "publication" and isinstance(before, dict) and isinstance(after, dict):
            lines += _publication(before, after)
        elif name in _KEYS and _is_records(before) and _is_records(after):
            lines += _records(name, before or [], after or [])
        elif isinstance(before, dict) and isinstance(after, dict):
            lines += [f"{_words(name)} {line}" for line in _fields(before, after)]
        elif _is_list(before) and _is_list(after):
            lines += _items(name, before or [], after or [])
        else:
            lines.append(_changed(_words(name), before, after))
    return tuple(lines)


def _is_list(value: object) -> bool:
    return value is None or (
        isinstance(value, list) and not any(isinstance(v, (dict, list)) for v in value)
    )


def _is_records(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(v, dict) for v in value))


def _venue(publication: Plain) -> str:
    """`ICML 2026`, `CVPR 2025 (workshop)`, or the type where there is no venue."""
    venue, kind = publication.get("venue"), publication.get("type")
    if venue is None:
        return _shown(kind)
    text = f"{venue} {publication.get('year', '')}".strip()
    return f"{_shown(text)} ({kind})" if kind not in ("conference", "journal") else _shown(text)


def _publication(old: Plain, new: Plain) -> list[str]:
    before, after = _venue(old), _venue(new)
    lines = [f"venue: {before} -> {after}"] if before != after else []
    told = ("type", "venue", "year") if before != after else ()
    return lines + [f"publication {line}" for line in _fields(old, new, told)]


def _records(name: str, old: Sequence[Plain], new: Sequence[Plain]) -> list[str]:
    before, after = _keyed(name, old), _keyed(name, new)
    came = [key for key in after if key not in before]
    went = [key for key in before if key not in after]
    lines: list[str] = []
    if name == "code" and len(came) == len(went) == 1:  # a link that moved is still the link
        lines += _inner(name, before[went[0]], after[came[0]])
        came, went = [], []
    for sign, keys, records in (("+", came, after), ("-", went, before)):
        if keys and name in _NAMES:
            shown = ", ".join(sorted(_label(name, records[key]) for key in keys))
            lines.append(f"{_counted(sign, len(keys), name)}: {_shown(shown, 4 * _LONGEST)}")
        elif keys:
            lines += [f"{sign}{_measure(records[key])}" for key in sorted(keys)]
    for key in sorted(before):
        if key in after and before[key] != after[key]:
            lines += _inner(name, before[key], after[key])
    return lines


def _keyed(name: str, records: Sequence[Plain]) -> dict[tuple[str, ...], Plain]:
    found: dict[tuple[str, ...], Plain] = {}
    met: dict[tuple[str, ...], int] = {}
    for record in records:
        key = tuple(str(record.get(part, "")) for part in _KEYS[name])
        met[key] = met.get(key, 0) + 1
        found[(*key, str(met[key]))] = record
    return found


def _label(name: str, record: Plain) -> str:
    if name == "relations":
        return f"{record.get('type', '')} {record.get('to', '')}"
    if name == "code":
        return str(record.get("url") or record.get("status", ""))
    return str(record.get("id", ""))


def _inner(name: str, old: Plain, new: Plain) -> list[str]:
    """Changes within one record of a list, each with the record's name."""
    if name == "measures":
        if (old.get("value"), old.get("unit")) != (new.get("value"), new.get("unit")):
            rest = _fields(old, new, ("metric", "value", "unit"))
            change = f"{_metric(old)} {_amount(old)} -> {_amount(new)}"
            return [change, *(f"{_metric(new)} {line}" for line in rest)]
        return [f"{_metric(new)} {line}" for line in _fields(old, new)]
    lines = _fields(old, new)
    if name == "results":
        return [f"result {_label(name, new)}: {line}" for line in lines]
    if name == "relations":
        return [f"relation {_label(name, new)}: {line}" for line in lines]
    return [f"code {line}" for line in lines]


_ACRONYMS = {"fid", "sfid", "fvd", "fad", "kl", "kid", "cmmd", "dpg-bench", "ssim", "psnr", "mse"}


def _metric(measure: Plain) -> str:
    name = str(measure.get("metric", ""))
    return name.upper() if name in _ACRONYMS else name.replace("-", " ")


def _amount(measure: Plain) -> str:
    unit = measure.get("unit")
    return f"{_shown(measure.get('value'))}{f' {unit}' if unit not in (None, '1') else ''}"


def _measure(measure: Plain) -> str:
    return f"{_metric(measure)} {_amount(measure)}"


def _items(name: str, old: Sequence[Any], new: Sequence[Any]) -> list[str]:
    """Additions and removals of a list of plain values, or that only the order changed."""
    before, after = set(old), set(new)
    came = [_shown(value) for value in new if value not in before]
    went = [_shown(value) for value in old if value not in after]
    if not came and not went:
        return [f"{_words(name)}: other order"]
    signed = [f"+{value}" for value in sorted(came)] + [f"-{value}" for value in sorted(went)]
    return [f"{_words(name)}: {', '.join(signed)}"]


def _changed(name: str, old: object, new: object) -> str:
    if old is None:
        return f"{name}: {_shown(new)} (new)"
    if new is None:
        return f"{name}: removed, was {_shown(old)}"
    return f"{name}: {_shown(old)} -> {_shown(new)}"


def _words(name: str) -> str:
    return {"arxiv": "arXiv id", "doi": "DOI", "openreview": "OpenReview id"}.get(
        name, name.replace("_", " ")
    )


def _counted(sign: str, count: int, name: str) -> str:
    one, many = _NAMES[name]
    return f"{sign}{count} {one if count == 1 else many}"


def _shown(value: object, longest: int = _LONGEST) -> str:
    """A value on one line, cut where it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, dict):
        value = ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    elif isinstance(value, list):
        value = ", ".join(_shown(v) for v in value)
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


# --------------------------------------------------------------------------- output


def as_text(changes: Sequence[EntryChange]) -> str:
    """One line per entry, the changes indented beneath it; a line of counts at the end."""
    lines: list[str] = []
    for change in changes:
        lines.append(change.headline)
        lines += [f"  {line}" for line in change.changes]
    text = "\n".join([*lines, _summary(changes)]) + "\n"
    # What stands in a file must not move the cursor of who reads the report.
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def as_markdown(changes: Sequence[EntryChange]) -> str:
    """Headings and lists for the comment on a pull request; every text is escaped."""
    lines = [f"**{plain(_summary(changes))}**", ""]
    for section in dict.fromkeys(change.section for change in changes):
        lines += [f"### {section.capitalize()}", ""]
        for change in changes:
            if change.section == section:
                lines.append(f"- {plain(change.headline)}")
                lines += [f"    - {_item(line)}" for line in change.changes]
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _item(line: str) -> str:
    # A sign at the start of an item would open a list of its own.
    sign = {"+": "&#43;", "-": "&#45;"}.get(line[:1])
    return f"{sign}{plain(line[1:])}" if sign else str(plain(line))


def as_json(changes: Sequence[EntryChange]) -> dict[str, Any]:
    """Plain data: counts, and the changes of each entry."""
    return {
        "counts": {kind: sum(c.kind == kind for c in changes) for kind in _KINDS},
        "entries": [
            {"section": c.section, "id": c.id, "kind": c.kind}
            | ({"old_id": c.old_id} if c.old_id else {})
            | {"changes": list(c.changes)}
            for c in changes
        ],
    }


_KINDS: tuple[Kind, ...] = ("added", "removed", "renamed", "changed")


def _summary(changes: Sequence[EntryChange]) -> str:
    counts = [(sum(c.kind == kind for c in changes), kind) for kind in _KINDS]
    parts = [f"{count} {kind}" for count, kind in counts if count]
    return ", ".join(parts) if parts else "no change"
