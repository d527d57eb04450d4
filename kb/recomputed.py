"""Claims about size that were recomputed from the architecture, read as data.

`scripts/claims.py` computes them and needs torch; here they are only read, and held against the
literature that they were computed for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from kb.schema import Literature, Result, SparsityKind

Verdict = Literal["agrees", "differs", "not recomputable"]


class Recomputed(BaseModel):
    """One printed number beside what the architecture gives, both in `unit`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    paper: str
    row: str
    metric: Literal["params", "macs"]
    what: Literal["dense", "pruned"]
    claimed: float
    unit: str
    recomputed: float | None
    assumption: str
    verdict: Verdict


_FILE = TypeAdapter(tuple[Recomputed, ...])


def read(path: Path) -> tuple[Recomputed, ...]:
    """The claims of a file that scripts/claims.py wrote.

    Raises:
        ValueError: naming the file and the first field that is wrong.
    """
    try:
        return _FILE.validate_python(
            tuple(json.loads(path.read_text(encoding="utf-8"))), strict=False
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path.name}: {place}: {first['msg']}; run scripts/claims.py") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path.name}: not a JSON list; run scripts/claims.py ({error})") from None


def by_row(found: Iterable[Recomputed]) -> dict[tuple[str, str], tuple[Recomputed, ...]]:
    """Claims by paper and row."""
    groups: dict[tuple[str, str], tuple[Recomputed, ...]] = {}
    for one in found:
        groups[one.paper, one.row] = (*groups.get((one.paper, one.row), ()), one)
    return groups


def outdated(literature: Literature, found: Iterable[Recomputed]) -> Iterator[str]:
    """What claims say that the literature does not, one line each."""
    rows = {(p.id, row.id): row for p in literature.papers for row in p.results}
    for one in found:
        row = rows.get((one.paper, one.row))
        place = f"{one.paper}, row {one.row}"
        if row is None:
            yield f"{place}: there is no such row"
        elif (one.claimed, one.unit) not in set(_printed(row, one)):
            yield f"{place}: {one.what} {one.metric} of {one.claimed:g} {one.unit} is not printed"


def _printed(row: Result, one: Recomputed) -> Iterator[tuple[float, str]]:
    """The numbers that a claim can be about; a dense model's row prints the dense one itself."""
    for measure in row.measures:
        if measure.metric.value == one.metric:
            dense = measure.value if row.sparsity.kind is SparsityKind.NONE else measure.dense
            value = dense if one.what == "dense" else measure.value
            if value is not None:
                yield value, measure.unit or measure.metric.unit
