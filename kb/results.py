"""The measured results as data: read, validated, put into one table, rendered three ways.

One record per run lies at `methods/results/<task>/<recipe>/<seed>.json`; the path is its key.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kb.cards import RECONSTRUCTION, reconstructions

ROOT = Path(__file__).resolve().parents[1] / "methods" / "results"
EXPERIMENTS = ROOT / "experiments"
SAME_SIZE = 0.02  # rows whose size differs by at most this fraction of dense are compared
# What rows may be equal in; only rows of equal MACs are ranked.
EQUAL = {"macs_fraction": "MACs", "params_fraction": "parameters"}
CONFIDENCE = 0.95
# What a paired comparison is drawn for: as it is called, whether more of it is better, its unit.
COMPARED = {
    "frechet": ("Fréchet distance", False, "in Fréchet distance"),
    "kernel": ("kernel distance", False, "in kernel distance"),
    "as_asked": ("images as asked", True, "of all images"),
}
# Sizes that tables group their rows by, of the dense model's MACs; the others stand apart.
SIZES = (0.75, 0.5)
_OTHER, _ZEROS = "other sizes", "zeros, all MACs"
_RANKED = "frechet"
RECOVERY = "finetune"  # the plain one, which tables show as a number of steps
_RECOVERIES = frozenset({"finetune", "distill"})
_GATES_ONLY = frozenset({"ecodiff"})  # their optimizer steps learn what goes and move no weight
_FASTER = 1.01  # below this a speed-up is none: repeated timings differ by as much

Table = dict[str, Any]


class ResultsError(ValueError):
    """A record, or a set of records, that cannot be used; the message names the file."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StageRecord(_Strict):
    method: str
    config: dict[str, Any]


class DenseSize(_Strict):
    params: int = Field(gt=0)
    nonzero_params: int = Field(ge=0)
    weight_bytes: int = Field(gt=0)
    macs: int = Field(gt=0)
    macs_with_attention: int = Field(gt=0)


class Size(DenseSize):
    dense: DenseSize


class Rounds(_Strict):
    cpu_seconds: list[float] = Field(min_length=1)
    wall_seconds: list[float] = Field(min_length=1)


class Latency(_Strict):
    batch: int
    threads: int
    precision: str
    device: str
    speedup_cpu: float = Field(gt=0)
    speedup_wall: float = Field(gt=0)
    fewer_macs_but_slower: bool
    dense: Rounds
    pruned: Rounds


class Memory(_Strict):
    what: str
    batch: int
    peak_bytes: int = Field(gt=0)
    dense_peak_bytes: int = Field(gt=0)


class Quality(_Strict):
    frechet: float = Field(ge=0)
    kernel: float
    kernel_standard_error: float = Field(ge=0)
    mse_to_dense: float = Field(ge=0, le=4)
    ssim_to_dense: float = Field(ge=-1, le=1)
    agreement: dict[str, float] | None = None  # fractions of images that show what was asked for

    @property
    def as_asked(self) -> float | None:
        """Fraction of images that show all that was asked for; None where nothing was asked."""
        asked = self.agreement
        return None if asked is None else asked.get("all", asked["class"])


class CostRecord(_Strict):
    method: str
    seconds: float = Field(ge=0)
    cpu_seconds: float = Field(ge=0)
    optimizer_steps: int = Field(ge=0)
    denoiser_calls: int = Field(ge=0)
    denoiser_images: int = Field(ge=0)
    peak_bytes: int | None = Field(default=None, ge=0)
    # Of records from before memory was given back first: freed tensors hid what came after them.
    peak_memory_bytes: int | None = Field(default=None, ge=0)


class Provenance(_Strict):
    command: str
    date: str
    commit: str | None
    dirty: bool | None
    code_sha256: str
    base: str
    base_sha256: str
    device: str  # where images were drawn and features taken; times have their own device
    system: dict[str, Any]


class Record(_Strict):
    """One run, as `methods.harness.run` writes it."""

    schema_: Literal[1] = Field(alias="schema")
    task: str
    slug: str
    recipe: list[StageRecord] = Field(min_length=1)
    seed: int
    size: Size
    latency: Latency
    memory: Memory
    quality: Quality
    protocol: dict[str, Any]
    cost: list[CostRecord]
    notes: list[dict[str, Any]]
    provenance: Provenance

    @property
    def macs_fraction(self) -> float:
        """MACs left, of the dense model's."""
        return self.size.macs / self.size.dense.macs

    @property
    def params_fraction(self) -> float:
        """Parameters left, zeros included, of the dense model's."""
        return self.size.params / self.size.dense.params

    def took(self, cost: CostRecord) -> float:
        """CPU seconds of a stage, whatever else the machine had to do; of a GPU wall-clock ones."""
        return cost.cpu_seconds if self.provenance.device == "cpu" else cost.seconds

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps that moved weights: what retraining means in a table."""
        return sum(c.optimizer_steps for c in self.cost if c.method not in _GATES_ONLY)


class ExperimentColumn(_Strict):
    key: str
    label: str
    digits: int | None


class ExperimentProvenance(_Strict):
    command: str
    date: str
    commit: str | None
    dirty: bool | None
    code_sha256: str
    bases: dict[str, str] = Field(default_factory=dict)  # weights of the dense models, by task
    device: str
    system: dict[str, Any]


class Experiment(_Strict):
    """One question with its bar and what was found, as `methods.harness.experiment` writes it."""

    schema_: Literal[1] = Field(alias="schema")
    name: str
    question: str
    methods: list[str]
    task: str | None
    bar: str
    source: str
    verdict: Literal["shown", "in part", "not shown"]
    answer: str
    why: str
    columns: list[ExperimentColumn] = Field(min_length=1)
    rows: list[dict[str, float | int | str | None]]
    settings: dict[str, Any]
    seeds: list[int] = Field(min_length=1)
    protocol: dict[str, Any]
    seconds: float = Field(ge=0)
    provenance: ExperimentProvenance

    @property
    def machine(self) -> str:
        """The processor or the GPU that it ran on."""
        system = self.provenance.system
        gpus = system.get("cuda") or []
        return str(gpus[0] if self.provenance.device.startswith("cuda") and gpus else system["cpu"])

    def cells(self) -> list[list[str]]:
        """The rows as text, in the order of the columns."""
        return [[_cell(row[c.key], c.digits) for c in self.columns] for row in self.rows]


def _cell(value: float | int | str | None, digits: int | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str) or digits is None:
        return str(value)
    return f"{value:.{digits}f}"


# --- reading ---------------------------------------------------------------------------------


def experiments(folder: Path = EXPERIMENTS) -> tuple[Experiment, ...]:
    """All committed experiments, by name.

    Raises:
        ResultsError: a file is cut or foreign, or is not named as what it holds.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = Experiment.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ResultsError(
                f"{path}: {field}: {first['msg']}; run `python -m methods experiment {path.stem}`"
            ) from error
        if record.name != path.stem:
            raise ResultsError(f"{path}: holds the experiment {record.name}; rename the file")
        found.append(record)
    return tuple(found)


def tasks(root: Path = ROOT) -> tuple[str, ...]:
    """Tasks that have at least one record."""
    if not root.is_dir():
        return ()
    return tuple(sorted({path.parts[-3] for path in root.glob("*/*/*.json")}))


def load(path: Path) -> Record:
    """One record.

    Raises:
        ResultsError: the file is cut or foreign, or its path is not the key of what it holds.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(
            f"{path}: not whole JSON ({error}); delete it and run the comparison again"
        ) from error
    try:
        record = Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ResultsError(
            f"{path}: {field}: {first['msg']}; not a result of this harness, delete it and run "
            "the comparison again"
        ) from error
    key = (record.task, record.slug, str(record.seed))
    if path.parts[-3:-1] != key[:2] or path.stem != key[2]:
        raise ResultsError(f"{path}: holds the result {'/'.join(key)}; move it to that path")
    return record


def records(task: str, root: Path = ROOT) -> tuple[Record, ...]:
    """All records of a task, by recipe and seed.

    Raises:
        ResultsError: a bad file, or no records of this task.
    """
    found = [load(path) for path in sorted((root / task).glob("*/*.json"))]
    if not found:
        known = ", ".join(tasks(root)) or "none"
        raise ResultsError(f"no results for task {task!r}; tasks with results: {known}")
    return tuple(sorted(found, key=lambda record: (record.slug, record.seed)))


# --- table -----------------------------------------------------------------------------------

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("recipe", "method", "methods in the order in which they were applied, with what was changed"),
    ("seeds", "seeds", "number of runs, each with its own noise, batches and random scores"),
    ("macs_fraction", "MACs left", "convolution and linear MACs, of the dense model's; achieved"),
    (
        "macs_with_attention_fraction",
        "with attention",
        "the same with the two matrix products of attention counted on both sides",
    ),
    (
        "params",
        "params",
        "parameters of the denoiser, zeros included: mean, (least–most) where seeds differ",
    ),
    ("nonzero_fraction", "non-zero", "parameters that are not zero, of the dense model's"),
    ("optimizer_steps", "retraining", "optimizer steps that moved weights, in the whole recipe"),
    (
        "frechet",
        "Fréchet ↓",
        "Fréchet distance to the held-out reference: mean (least–most) over seeds",
    ),
    ("rank", "rank", "by Fréchet distance, among rows of equal MACs and retraining; best–worst"),
    ("kernel", "kernel ↓", "kernel distance (unbiased MMD²) to the reference: mean (least–most)"),
    (
        "agreement",
        "as asked ↑",
        "images that show what was asked for (class, or class and both colours): mean (least–most)",
    ),
    ("ssim", "SSIM to dense ↑", "structural similarity to the dense model's images, same noise"),
    ("speedup", "speed-up", "dense over pruned, median of paired rounds, CPU time"),
    ("cost_seconds", "cost s", "CPU seconds (GPU: wall-clock) of pruning and retraining, mean"),
)


def table(task: str, root: Path = ROOT) -> Table:
    """The comparison of a task as JSON-ready data.

    Raises:
        ResultsError: as `records` and `tabulate`.
    """
    return tabulate(records(task, root))


def tabulate(found: Sequence[Record]) -> Table:
    """One row per recipe, paired comparisons at equal size and retraining, protocol and notes.

    Raises:
        ResultsError: no records, or records of different tasks, protocols or bases.
    """
    if not found:
        raise ResultsError("no results to put into a table")
    _check_alike(found)
    by_slug: dict[str, list[Record]] = {}
    for record in found:
        by_slug.setdefault(record.slug, []).append(record)
    rows = [_row(group) for group in by_slug.values()]
    shared = [labelled(note) for note in _drop_shared(rows)]
    _tell_apart(rows)
    for row in rows:
        row["recipe"] = labelled(row["recipe"])
    rows.sort(key=lambda r: (r["optimizer_steps"], -r["macs_fraction"], r["method"], r["slug"]))
    comparisons = _comparisons(rows, by_slug)
    _rank(rows, comparisons)
    dense = found[0].size.dense
    conditional = any(row["agreement"] is not None for row in rows)
    shown = [column for column in COLUMNS if conditional or column[0] != "agreement"]
    return {
        "task": found[0].task,
        "base": {
            "name": found[0].provenance.base,
            "sha256": found[0].provenance.base_sha256,
            "params": dense.params,
            "macs": dense.macs,
            "macs_with_attention": dense.macs_with_attention,
        },
        "protocol": found[0].protocol,
        "columns": [{"key": k, "label": label, "meaning": m} for k, label, m in shown],
        "rows": rows,
        "comparisons": comparisons,
        "notes": _notes(found, rows) + _resolution(rows, by_slug) + shared,
    }


def _check_alike(found: Sequence[Record]) -> None:
    first = found[0]
    seen: set[tuple[str, int]] = set()
    for record in found:
        where = f"{record.task}/{record.slug}/{record.seed}.json"
        start = f"{first.task}/{first.slug}/{first.seed}.json"
        if record.task != first.task:
            raise ResultsError(f"{where} and {start} are of different tasks")
        if record.protocol != first.protocol:
            keys = record.protocol.keys() | first.protocol.keys()
            odd = sorted(k for k in keys if record.protocol.get(k) != first.protocol.get(k))
            raise ResultsError(
                f"{where} and {start} were measured by different protocols ({', '.join(odd)}): "
                "their figures do not belong in one table; run one of them again"
            )
        if record.provenance.base_sha256 != first.provenance.base_sha256:
            raise ResultsError(
                f"{where} and {start} start from different weights of the base; run one again"
            )
        if (record.slug, record.seed) in seen:
            raise ResultsError(f"{where} is there twice")
        seen.add((record.slug, record.seed))


def _row(group: Sequence[Record]) -> Table:
    first = group[0]
    dense = first.size.dense
    method, request = _request(first)
    gain = _spread(_decisive(record.latency) for record in group)
    macs = _spread(record.macs_fraction for record in group)
    params = _spread(record.size.params for record in group)
    steps = _spread(record.optimizer_steps for record in group)
    return {
        "slug": first.slug,
        "recipe": _label(first),
        "method": method,
        "request": request,
        "seeds": [record.seed for record in group],
        "macs_fraction": macs["mean"],
        "macs_fraction_range": [macs["min"], macs["max"]],
        "macs_with_attention_fraction": statistics.fmean(
            r.size.macs_with_attention / dense.macs_with_attention for r in group
        ),
        "macs": round(statistics.fmean(record.size.macs for record in group)),
        "params": round(params["mean"]),
        "params_range": [params["min"], params["max"]],
        "params_fraction": params["mean"] / dense.params,
        "nonzero_fraction": statistics.fmean(r.size.nonzero_params / dense.params for r in group),
        "weight_bytes": round(statistics.fmean(record.size.weight_bytes for record in group)),
        "optimizer_steps": round(steps["mean"]),
        "optimizer_steps_range": [steps["min"], steps["max"]],
        "frechet": _spread(record.quality.frechet for record in group),
        "kernel": _spread(record.quality.kernel for record in group),
        "kernel_standard_error": statistics.fmean(r.quality.kernel_standard_error for r in group),
        "agreement": _agreement(group),
        "ssim": _spread(record.quality.ssim_to_dense for record in group),
        "mse": _spread(record.quality.mse_to_dense for record in group),
        "speedup": gain,
        "speedup_wall": _spread(record.latency.speedup_wall for record in group),
        "no_faster": macs["mean"] < 1 and gain["mean"] < _FASTER,
        "peak_memory_fraction": statistics.fmean(
            record.memory.peak_bytes / record.memory.dense_peak_bytes for record in group
        ),
        "cost_seconds": statistics.fmean(sum(map(r.took, r.cost)) for r in group),
        "denoiser_images": round(
            statistics.fmean(sum(c.denoiser_images for c in record.cost) for record in group)
        ),
        "bare": not any(stage.method in _RECOVERIES for stage in first.recipe),
        "compression": _compression(group),
    }


def _compression(group: Sequence[Record]) -> Table:
    """What pruning itself took, without the plain retraining behind it: means over seeds.

    Of memory the median: the first run of a process pays for what the others find ready.
    """
    own = [[c for c in r.cost if c.method not in _RECOVERIES] or r.cost for r in group]
    found: Table = {
        key: statistics.fmean(sum(getattr(c, key) for c in costs) for costs in own)
        for key in ("denoiser_calls", "denoiser_images", "optimizer_steps")
    }
    found["seconds"] = statistics.fmean(
        sum(map(record.took, costs)) for record, costs in zip(group, own, strict=True)
    )
    peaks = [
        max(c.peak_bytes or 0 for c in costs)
        for costs in own
        if all(c.peak_bytes is not None for c in costs)
    ]
    return found | {"peak_bytes": statistics.median(peaks) if peaks else None}


def _agreement(group: Sequence[Record]) -> Table | None:
    """Fraction of images that show all that was asked for; None where nothing was asked."""
    values = [a for record in group if (a := record.quality.as_asked) is not None]
    return _spread(values) if len(values) == len(group) else None


def _decisive(latency: Latency) -> float:
    return latency.speedup_wall if latency.device == "cuda" else latency.speedup_cpu


def _request(record: Record) -> tuple[str, str]:
    """(method, size that was asked for) of the first stage that is not plain retraining."""
    stages = [s for s in record.recipe if s.method != RECOVERY] or record.recipe
    names = " + ".join(stage.method for stage in stages)
    for stage in stages:
        for key in ("macs", "params", "ratio"):
            value = stage.config.get(key)
            if value is not None:
                return names, f"{key} {value:g}"
    return names, ""


def _label(record: Record) -> str:
    """Method names with changed settings; size and retraining have columns of their own."""
    words = []
    for part, stage in zip(record.slug.split("+"), record.recipe, strict=False):
        name, *settings = part.split("-")
        if name == RECOVERY and len(record.recipe) > 1:
            continue
        shown = [word for word in settings if not word.startswith(("macs", "params", "ratio"))]
        words.append(" ".join([name, *(_assignment(word, stage.config) for word in shown)]))
    return " + ".join(words)


def _assignment(word: str, config: Mapping[str, Any]) -> str:
    """`batch_size32` of a slug as `batch_size=32`."""
    keys = [key for key in config if word.startswith(key)]
    key = max(keys, key=len, default="")
    return f"{key}={word.removeprefix(key)}" if key else word


def _drop_shared(rows: Sequence[Table]) -> list[str]:
    """Take the settings that all rows of a method share out of their labels, into a note."""
    words = {row["slug"]: row["recipe"].split() for row in rows}
    alike: dict[tuple[str, ...], list[Table]] = {}
    for row in rows:
        names = tuple(word for word in words[row["slug"]] if "=" not in word)
        alike.setdefault(names, []).append(row)
    stated = []
    for names, group in alike.items():
        shared = set.intersection(*(set(words[row["slug"]]) for row in group)) - set(names)
        if not shared:
            continue
        ordered = [word for word in words[group[0]["slug"]] if word in shared]
        # What is left at its default says nothing; a number of steps is always in the slug.
        told = [word for word in ordered if not word.endswith("=none")]
        if told:
            stated.append(f"{' '.join(names)}: {', '.join(told)}")
        for row in group:
            row["recipe"] = " ".join(w for w in words[row["slug"]] if w not in shared)
    if not stated:
        return []
    return ["Settings that differ from a method's own: " + "; ".join(sorted(stated)) + "."]


def _tell_apart(rows: Sequence[Table]) -> None:
    """Rows that would read the same get their whole slug."""
    seen: dict[tuple[Any, ...], list[Table]] = {}
    for row in rows:
        key = (row["recipe"], size_cell(row), row["optimizer_steps"])
        seen.setdefault(key, []).append(row)
    for alike in seen.values():
        if len(alike) > 1:
            for row in alike:
                row["recipe"] = row["slug"]


def labelled(text: str) -> str:
    """`text` with every reconstruction that it names, alone or in a slug, marked as one."""
    names = "|".join(sorted(reconstructions()))
    if not names:
        return text
    return re.sub(rf"\b((?:{names})(?:-[^\s:,;]*)?)(?![\w-])", rf"\1 {RECONSTRUCTION}", text)


def size_cell(row: Table) -> str:
    """MACs left, the mean over seeds, in words."""
    return f"{100 * row['macs_fraction']:.1f} %"


def _spread(values: Iterable[float]) -> Table:
    found = list(values)
    return {
        "mean": statistics.fmean(found),
        "min": min(found),
        "max": max(found),
        "n": len(found),
        "values": found,
    }


def headline(table: Table) -> list[Table]:
    """The dense row, then of every method the row that was retrained longest and cut deepest.

    A method that both cuts and zeroes has a row for each.
    """
    last: dict[tuple[str, bool], Table] = {}
    for row in table["rows"]:
        key = row["method"], _zeroed(row)
        kept = last.setdefault(key, row)
        if _depth(row) > _depth(kept):
            last[key] = row
    return [row for _, rows in by_size(list(last.values())) for row in rows]


def by_size(rows: Sequence[Table]) -> list[tuple[str, list[Table]]]:
    """Rows with a heading for each group in which an order by quality means something.

    Dense first, under no heading; then rows of the sizes that are asked for, of other sizes, and
    those whose zeros save no MACs.
    """
    sized = {size: f"{100 * size:.0f} % of MACs" for size in SIZES}
    groups: dict[str, list[Table]] = {n: [] for n in ("", *sized.values(), _OTHER, _ZEROS)}
    for row in rows:
        near = (name for s, name in sized.items() if abs(row["macs_fraction"] - s) <= SAME_SIZE)
        name = _ZEROS if _zeroed(row) else next(near, _OTHER)
        groups["" if row["slug"] == "dense" else name].append(row)
    return [(name, _in_order(found)) for name, found in groups.items() if found]


def _in_order(rows: Sequence[Table]) -> list[Table]:
    """From the largest to the smallest; rows of nearly equal MACs by their Fréchet distance."""
    sizes: list[list[Table]] = []
    for row in sorted(rows, key=lambda r: -r["macs_fraction"]):
        if sizes and sizes[-1][0]["macs_fraction"] - row["macs_fraction"] <= 2 * SAME_SIZE:
            sizes[-1].append(row)
        else:
            sizes.append([row])
    return [r for alike in sizes for r in sorted(alike, key=lambda r: r["frechet"]["mean"])]


def _zeroed(row: Table) -> bool:
    """Whether weights are zero in tensors of their old shape."""
    holes = bool(row["nonzero_fraction"] < row["params_fraction"] - 0.01)
    return holes and bool(row["macs_fraction"] > 0.999)


def dense_first(table: Table, rows: Sequence[Table]) -> list[Table]:
    """`rows` behind the dense model's row, which stands once."""
    dense = [row for row in table["rows"] if row["slug"] == "dense"]
    return dense + [row for row in rows if row["slug"] != "dense"]


def rows_of(method: str, table: Table) -> list[Table]:
    """Rows of a result table whose recipe has this method in it."""
    stages = {
        row["slug"]: [s.split("-")[0] for s in row["slug"].split("+")] for row in table["rows"]
    }
    return [row for row in table["rows"] if method in stages[row["slug"]]]


def _depth(row: Table) -> tuple[int, float, float]:
    return row["optimizer_steps"], -row["macs_fraction"], -row["nonzero_fraction"]


# --- order -----------------------------------------------------------------------------------


def _comparisons(rows: Sequence[Table], by_slug: dict[str, list[Record]]) -> list[Table]:
    """Paired differences of every two rows of equal retraining and equal MACs or parameters."""
    found = []
    for index, a in enumerate(rows):
        for b in rows[index + 1 :]:
            records = by_slug[a["slug"]], by_slug[b["slug"]]
            equal = next((what for what in EQUAL if _of_one_size(*records, what)), None)
            if equal is None or a["optimizer_steps"] != b["optimizer_steps"]:
                continue
            for metric in COMPARED:
                seeds, differences = _differences(*records, metric)
                if seeds:
                    found.append(_comparison(a, b, metric, differences, seeds) | {"equal": equal})
    return found


def _pairs(a: Sequence[Record], b: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Runs of equal seed: a device rounds in its own way, so only one kind of device is paired."""
    left, right = ({(r.seed, r.provenance.device): r for r in of} for of in (a, b))
    return [(left[key], right[key]) for key in sorted(left.keys() & right.keys())]


def _of_one_size(a: Sequence[Record], b: Sequence[Record], what: str) -> bool:
    """Whether the runs of every pair are: equal means may hide unequal runs."""
    return all(abs(getattr(x, what) - getattr(y, what)) <= SAME_SIZE for x, y in _pairs(a, b))


def _differences(
    a: Sequence[Record], b: Sequence[Record], metric: str
) -> tuple[list[int], list[float]]:
    """(seeds, a - b) of the pairs in which both have the metric."""
    found = [
        (x.seed, left - right)
        for x, y in _pairs(a, b)
        if (left := getattr(x.quality, metric)) is not None
        and (right := getattr(y.quality, metric)) is not None
    ]
    return [seed for seed, _ in found], [difference for _, difference in found]


def _resolution(rows: Sequence[Table], by_slug: dict[str, list[Record]]) -> list[str]:
    """Whether the figures tell the dense model from damaged ones: a sentence, if it can be said.

    Fréchet distances, in pairs over seeds, as for the order of rows.
    """
    dense = next((row for row in rows if row["slug"] == "dense"), None)
    if dense is None:
        return []
    told: list[tuple[float, str]] = []
    alike: list[str] = []
    for row in rows:
        _, gaps = _differences(by_slug[row["slug"]], by_slug["dense"], _RANKED)
        interval = paired_interval(gaps)
        if row is dense or interval is None:
            continue
        name = f"{row['recipe']} at {size_cell(row)} after {row['optimizer_steps']} steps"
        if interval[0] > 0:
            told.append((statistics.fmean(gaps), name))
        else:
            alike.append(name)
    if not told:
        return []
    gap, mildest = min(told)
    sentence = (
        f"{len(told)} of {len(told) + len(alike)} rows with more than one seed are surely farther "
        f"from the reference than the dense model; the smallest such gap is {gap:.1f} of "
        f"{dense['frechet']['mean']:.1f} ({mildest})."
    )
    return [sentence + (f" Not told from it: {'; '.join(alike)}." if alike else "")]


def _comparison(
    a: Table, b: Table, metric: str, differences: Sequence[float], seeds: Sequence[int]
) -> Table:
    mean = statistics.fmean(differences)
    interval = paired_interval(differences)
    if interval is None:
        verdict = "tie"
        why = "one seed: no spread, so no order is claimed"
    elif interval[0] <= 0 <= interval[1]:
        verdict = "tie"
        why = f"the {CONFIDENCE:.0%} interval of the paired difference contains zero"
    else:
        more_is_better = COMPARED[metric][1]
        verdict = "a" if (mean > 0) == more_is_better else "b"
        why = f"the {CONFIDENCE:.0%} interval of the paired difference excludes zero"
    return {
        "metric": metric,
        "a": a["slug"],
        "b": b["slug"],
        "a_label": a["recipe"],
        "b_label": b["recipe"],
        "macs_fraction": (a["macs_fraction"] + b["macs_fraction"]) / 2,
        "params_fraction": (a["params_fraction"] + b["params_fraction"]) / 2,
        "optimizer_steps": a["optimizer_steps"],
        "seeds": list(seeds),
        "difference": mean,
        "interval": list(interval) if interval else None,
        "better": verdict,
        "why": why,
    }


def paired_interval(
    differences: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Two-sided Student t interval of the mean difference; None for fewer than two pairs."""
    n = len(differences)
    if n < 2:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * statistics.stdev(differences)
    mean = statistics.fmean(differences)
    return mean - half / math.sqrt(n), mean + half / math.sqrt(n)


def _rank(rows: Sequence[Table], comparisons: Sequence[Table]) -> None:
    """Rank by Fréchet distance, from one plus the rows that are surely better to these plus ties.

    A row whose seeds disagree ties with many, and its range of ranks is wide, not good.
    """
    peers: dict[str, set[str]] = {row["slug"]: set() for row in rows}
    beaten: dict[str, int] = dict.fromkeys(peers, 0)
    tied: dict[str, set[str]] = {row["slug"]: set() for row in rows}
    for pair in comparisons:
        if pair["metric"] != _RANKED or pair["equal"] != "macs_fraction":
            continue
        a, b = pair["a"], pair["b"]
        peers[a].add(b)
        peers[b].add(a)
        if pair["better"] == "tie":
            tied[a].add(b)
            tied[b].add(a)
        else:
            beaten[b if pair["better"] == "a" else a] += 1
    for row in rows:
        slug = row["slug"]
        if not peers[slug]:
            row["rank"] = None
        else:
            best, worst = beaten[slug] + 1, beaten[slug] + 1 + len(tied[slug])
            row["rank"] = f"{best}" if best == worst else f"{best}–{worst}"


def _notes(found: Sequence[Record], rows: Sequence[Table]) -> list[str]:
    samples = found[0].protocol.get("samples")
    notes = [
        "Figures are measured by this harness on its own base; none is a paper's.",
        f"Fréchet distance is biased upwards for few samples ({samples} here): compare within "
        "this table only.",
        "Ranks are among rows of equal MACs and retraining: one plus the rows that are surely "
        "better, up to these plus those that cannot be told apart, by 95 % intervals of "
        "differences paired over seeds (not corrected for the number of pairs). A wide range of "
        "ranks means a wide spread, not a good row. With one seed nothing can be told apart.",
        "Speed-up is the ratio of CPU time with one thread, medians of interleaved rounds.",
    ]
    stuck = [row for row in rows if row["no_faster"]]
    if stuck:
        names = (f"{row['recipe']} at {size_cell(row)}" for row in stuck)
        notes.append("Fewer MACs but no faster (!): " + "; ".join(dict.fromkeys(names)) + ".")
    zeroed = [row["recipe"] for row in rows if _zeroed(row)]
    if zeroed:
        notes.append(
            "Zeros in dense tensors save neither MACs nor time: "
            + "; ".join(dict.fromkeys(zeroed))
            + "."
        )
    systems = {str(r.provenance.system.get("cpu")) for r in found}
    if len(systems) > 1:
        notes.append("Times come from different machines: " + "; ".join(sorted(systems)) + ".")
    devices = {record.provenance.device for record in found}
    if "cuda" in devices:
        notes.append(
            f"Drawn on {'a GPU' if len(devices) == 1 else 'a GPU and a CPU'}. A GPU rounds "
            "otherwise than a CPU: rows of both are not compared."
        )
    if any(record.provenance.dirty for record in found):
        notes.append("Some runs were made with uncommitted changes; see `provenance.dirty`.")
    return notes


# --- rendering -------------------------------------------------------------------------------


def cells(row: Table) -> dict[str, str]:
    """What each column of a row shows, in the order of its table's columns."""
    asked = row["agreement"]
    return {
        "recipe": row["recipe"],
        "seeds": str(len(row["seeds"])),
        "macs_fraction": _ranged(size_cell(row), row["macs_fraction_range"], "{:.1f}", 100),
        "macs_with_attention_fraction": f"{100 * row['macs_with_attention_fraction']:.1f} %",
        "params": _ranged(f"{row['params'] / 1e6:.2f} M", row["params_range"], "{:.2f}", 1e-6),
        "nonzero_fraction": f"{100 * row['nonzero_fraction']:.1f} %",
        "optimizer_steps": _ranged(
            str(row["optimizer_steps"]), row["optimizer_steps_range"], "{:.0f}", 1
        ),
        "frechet": _figure(row["frechet"]),
        "rank": row["rank"] or "–",
        "kernel": _figure(row["kernel"]),
        **({} if asked is None else {"agreement": _figure(asked)}),
        "ssim": f"{row['ssim']['mean']:.3f}",
        "speedup": f"{row['speedup']['mean']:.2f}×{' !' if row['no_faster'] else ''}",
        "cost_seconds": f"{row['cost_seconds']:.1f}",
    }


def _ranged(mean: str, ends: Sequence[float], form: str, scale: float) -> str:
    """The mean alone, or with the least and the most over seeds where they read differently."""
    low, high = (form.format(scale * end) for end in ends)
    return mean if low == high else f"{mean} ({low}–{high})"


def _figure(spread: Table) -> str:
    """Mean, and the range where there is one, with as many digits as the size is worth."""
    digits = 0 if abs(spread["mean"]) >= 1000 else 1 if abs(spread["mean"]) >= 100 else 3
    if 10 <= abs(spread["mean"]) < 100:
        digits = 2
    mean = f"{spread['mean']:.{digits}f}"
    if spread["n"] == 1:
        return mean
    return f"{mean} ({spread['min']:.{digits}f}–{spread['max']:.{digits}f})"


def protocol_line(protocol: Table) -> str:
    """The protocol in one sentence."""
    features, reference = protocol.get("features", {}), protocol.get("reference", {})
    weight = protocol.get("guidance")  # none where nothing can be asked for
    guided = "" if weight is None else f" at guidance weight {weight:g}"
    return (
        f"{protocol.get('samples')} samples{guided}, {protocol.get('sampler')}, "
        f"{protocol.get('steps')} sampling steps, {protocol.get('precision')}; "
        f"features {features.get('network')} (sha256 {str(features.get('weights_sha256'))[:12]}…) "
        f"at {features.get('input_size')} pixels; "
        f"reference: {reference.get('size')} {reference.get('set')}"
    )


def claim(pair: Table) -> str:
    """One comparison as a sentence; the difference is the first minus the second that it names."""
    by, _, unit = COMPARED[pair["metric"]]
    turned = pair["better"] == "b"  # then b is named first
    difference, interval = pair["difference"], pair["interval"]
    if turned:
        difference = -difference
        interval = [-end for end in reversed(interval)]
    numbers = f"first minus second: {difference:.4g} {unit}"
    if interval:
        numbers += f", {CONFIDENCE:.0%} interval {interval[0]:.4g} to {interval[1]:.4g}"
    numbers += f", n={len(pair['seeds'])}"
    where = f"At {100 * pair[pair['equal']]:.0f} % of {EQUAL[pair['equal']]}"
    if pair["optimizer_steps"]:
        where += f" and {pair['optimizer_steps']} steps of retraining"
    a, b = pair["a_label"], pair["b_label"]
    if pair["better"] == "tie":
        return f"{where}, by {by}: {a} and {b} tie ({numbers})"
    first, second = (b, a) if turned else (a, b)
    return f"{where}, by {by}: {first} is better than {second} ({numbers})"


def text(data: Table) -> str:
    """The table in plain text, columns aligned."""
    labels = [column["label"] for column in data["columns"]]
    lines = [labels] + [list(cells(row).values()) for row in data["rows"]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(labels))]

    def align(line: Sequence[str]) -> str:
        first = line[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "  ".join([first, *rest]).rstrip()

    body = [align(lines[0]), "  ".join("-" * width for width in widths)]
    body += [align(line) for line in lines[1:]]
    body += ["", f"Protocol: {protocol_line(data['protocol'])}."]
    body += [f"- {note}" for note in data["notes"]]
    return "\n".join(body) + "\n"


def markdown(data: Table) -> str:
    """The table in Markdown, with protocol and notes under it."""
    head = [column["label"] for column in data["columns"]]
    lines = [_markdown_row(head), _markdown_row(["---"] + ["---:"] * (len(head) - 1))]
    lines += [_markdown_row(cells(row).values()) for row in data["rows"]]
    lines += ["", f"Protocol: {protocol_line(data['protocol'])}.", ""]
    lines += [f"- {note}" for note in data["notes"]]
    return "\n".join(lines) + "\n"


def _markdown_row(values: Iterable[str]) -> str:
    # A pipe would end the cell early, and an underscore pair would start emphasis.
    escaped = (v.replace("\\", "\\\\").replace("|", "\\|").replace("_", "\\_") for v in values)
    return "| " + " | ".join(escaped) + " |"
