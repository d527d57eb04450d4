"""One question about a method, answered by measurement: what `methods/experiments/` is made of.

An experiment has a bar, written down before it runs, and a verdict that follows from intervals
over seeds. What did not show is recorded like what did.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from kb.results import EXPERIMENTS, paired_interval
from methods import registry

from . import measure
from .journal import write_text
from .run import Bench, Protocol, Report, code_sha256, git_state, source

SCHEMA = 1
Verdict = Literal["shown", "in part", "not shown"]
Value = float | int | str | None


@dataclass(frozen=True)
class Column:
    """One column of an experiment's table."""

    key: str
    label: str
    digits: int | None = None  # behind the point, None: as it is


@dataclass(frozen=True)
class Finding:
    """What an experiment found; `why` gives the reason wherever the effect did not show."""

    verdict: Verdict
    answer: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Value], ...]
    why: str = ""

    def __post_init__(self) -> None:
        if self.verdict != "shown" and not self.why:
            raise ValueError(f"a verdict of {self.verdict!r} needs a reason in `why`")
        keys = {column.key for column in self.columns}
        for row in self.rows:
            if row.keys() != keys:
                raise ValueError(f"row keys {sorted(row)} are not the columns {sorted(keys)}")


@dataclass(frozen=True)
class Paired:
    """Mean difference a - b over seeds, with its two-sided 95 % Student interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def below(self) -> bool:
        """a is surely smaller than b."""
        return self.high < 0

    @property
    def above(self) -> bool:
        """a is surely larger than b."""
        return self.low > 0

    def __str__(self) -> str:
        return f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g}, n={self.n})"

    @property
    def ratio(self) -> str:
        """Of a difference of logarithms: a over b, with its interval."""
        middle, low, high = (
            _beside_one(math.exp(min(v, 700))) for v in (self.mean, self.low, self.high)
        )
        return f"{middle} ({low} to {high}, n={self.n})"


def _beside_one(ratio: float) -> str:
    """Three digits, or as many as keep a ratio that is not 1 from reading as the bar of 1."""
    digits = 3
    while ratio != 1 and float(f"{ratio:.{digits}g}") == 1 and digits < 12:
        digits += 1
    return f"{ratio:.{digits}g}"


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Compare two series over the same seeds, in the same order.

    Raises:
        ValueError: fewer than two pairs, or series of different length.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    interval = paired_interval(differences)
    if interval is None:
        raise ValueError("an interval needs at least two seeds")
    return Paired(fmean(differences), *interval, n=len(differences))


def paired_logs(a: Sequence[float], b: Sequence[float]) -> Paired:
    """`paired` on natural logarithms, for errors that differ by factors; see `Paired.ratio`.

    Raises:
        ValueError: as `paired`, or a value that is not positive.
    """
    if not all(value > 0 for value in (*a, *b)):
        raise ValueError("logarithms need positive values")
    return paired([math.log(value) for value in a], [math.log(value) for value in b])


def verdict_of(missed: int, checked: int) -> Verdict:
    """The verdict on a bar of so many parts: shown if all are met, not shown if none is.

    Raises:
        ValueError: there is nothing to judge, or more missed than was checked.
    """
    if not 0 <= missed <= checked or not checked:
        raise ValueError(f"{missed} of {checked} parts of a bar cannot be missed")
    return "shown" if not missed else "not shown" if missed == checked else "in part"


@dataclass
class Lab:
    """What an experiment may use: seeds, a device and a bench for each task."""

    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"
    protocol: Protocol = field(default_factory=Protocol)
    report: Report = lambda _: None
    used: dict[str, Bench] = field(default_factory=dict)  # by task, of what was asked for

    def bench(self, task: str) -> Bench:
        """The task's dense model, data and figures of quality; loaded once."""
        if task not in self.used:
            self.used[task] = Bench(task, self.protocol, device=self.device, report=self.report)
        return self.used[task]


def investigate(name: str, lab: Lab, settings: registry.Settings) -> dict[str, Any]:
    """Run one experiment and return its record.

    A module's SEEDS, if it has one, is how many of the lab's seeds it uses: the first ones.

    Raises:
        ValueError: unknown experiment or setting, too few or repeated seeds, or the experiment
            refuses the machine.
    """
    described = registry.describe_experiment(name)
    module = registry.load_experiment(name)
    config = module.Config(**settings)
    used = getattr(module, "SEEDS", None)
    if used is None and len(lab.seeds) < 2:
        raise ValueError(f"{name}: --seeds needs at least two, its intervals are over them")
    if len(set(lab.seeds)) < len(lab.seeds):
        raise ValueError(f"{name}: --seeds names a seed twice, which would narrow every interval")
    lab = replace(lab, seeds=lab.seeds[:used])
    start = time.perf_counter()
    finding: Finding = module.investigate(lab, config)
    return {
        "schema": SCHEMA,
        "name": name,
        "question": described.describes,
        **described.card,
        "verdict": finding.verdict,
        "answer": finding.answer,
        "why": finding.why,
        "columns": [asdict(column) for column in finding.columns],
        "rows": [dict(row) for row in finding.rows],
        "settings": asdict(config),
        "seeds": list(lab.seeds),
        "protocol": {
            "samples": lab.protocol.samples,
            "steps": lab.protocol.steps,
            "precision": lab.protocol.precision,
            "reference": lab.protocol.reference,
        },
        "seconds": round(time.perf_counter() - start, 1),
        "provenance": {
            "command": _command(name, lab, settings),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **git_state(),
            "code_sha256": _code_sha256(name),
            "bases": {task: bench.dense_sha256 for task, bench in sorted(lab.used.items())},
            "device": lab.device,
            "system": measure.system_info(),
        },
    }


def write(record: Mapping[str, Any], path: Path | None = None) -> Path:
    """Write a record as JSON, atomically, to `path` or to its committed place."""
    path = path or EXPERIMENTS / f"{record['name']}.json"
    write_text(path, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return path


def _command(name: str, lab: Lab, settings: registry.Settings) -> str:
    words = ["python", "-m", "methods", "experiment", name]
    words += ["--seeds", ",".join(map(str, lab.seeds))]
    for option in ("samples", "steps", "reference", "precision"):
        words += [f"--{option}", str(getattr(lab.protocol, option))]
    words += ["--device", lab.device]
    defaults = registry.describe_experiment(name).defaults
    for key, value in settings.items():
        if value != defaults[key]:
            words += ["--set", f"{name}.{key}={value}"]
    return " ".join(words)


def _code_sha256(name: str) -> str:
    """Hash of the experiment, the harness and the methods that the experiment is about."""
    about = registry.describe_experiment(name).card["methods"]
    stages = tuple(registry.Stage(method, {}) for method in about)
    own = source("experiments", f"{name}.py")
    return hashlib.sha256(code_sha256(stages).encode() + own).hexdigest()
