"""Append-only JSON lines that survive a kill: a torn last line is cut before appending."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """All whole records; a torn last line is left out.

    Raises:
        ValueError: a line other than the last is not a JSON object.
    """
    if not path.exists():
        return []
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            if number == len(lines):  # no newline behind it: the writer was killed
                break
            raise ValueError(f"{path}:{number}: {error}; restore the file from git") from error
        records.append(record)
    return records


def append(path: Path, record: Record) -> None:
    """Add one record and wait until it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        _cut_torn_tail(file)
        file.write(json.dumps(record, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _cut_torn_tail(file: Any) -> None:
    size = file.seek(0, os.SEEK_END)
    position = size
    while position:
        position = max(0, position - 4096)
        file.seek(position)
        block = file.read(min(4096, size - position))
        newline = block.rfind(b"\n")
        if newline >= 0:
            file.truncate(position + newline + 1)
            break
    else:
        file.truncate(0)
    file.seek(0, os.SEEK_END)


def rewrite(path: Path, records: Iterable[Record]) -> None:
    """Replace the whole file at once."""
    write_text(path, "".join(json.dumps(r, sort_keys=True) + "\n" for r in records))


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`, for bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
