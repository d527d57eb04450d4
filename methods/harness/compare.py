"""Many recipes, sizes and seeds on one task: a sweep that can be killed and goes on.

Every finished run is a record file of its own, so what is done is what is on disk; the journal
tells what happened when. The table is made from the records alone, never from memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from kb import results
from methods import registry
from methods.registry import Recipe, Stage

from . import journal, report
from .checkpoint import read_tensors
from .run import (
    RESULTS,
    ROOT,
    RUNS,
    Bench,
    Protocol,
    code_sha256,
    is_current,
    read_record,
    record_path,
    run_folder,
    write_record,
)

QUICK = ROOT / "build" / "compare"
COMPARISON = ROOT / "build" / "comparison"
PICTURED = 12  # images a row of the sample grid

# `make compare`: small enough for two slow cores and a few minutes. Its figures are noisy and its
# tables say so; the standard comparison is the one that is committed.
QUICK_METHODS = ("dense", "random_pruning", "magnitude", "diff_pruning")
QUICK_MACS = (0.75, 0.5)
QUICK_FINETUNE = (0, 30)
QUICK_SETTINGS = (
    "finetune.batch_size=32",
    "diff_pruning.batch_size=32",
    "diff_pruning.stride=10",
)
QUICK_PROTOCOL = Protocol(samples=200, steps=10, reference=2_000, latency_rounds=8)

# The committed comparison. Scores of channels look at every tenth timestep and 32 images, gates are
# learned over few steps: the papers' own numbers would take hours of two cores for every row.
STANDARD_SIZES = (0.75, 0.5)
STANDARD_SEEDS = (0, 1, 2)
STANDARD_STEPS = 100  # optimizer steps of retraining
STANDARD_BATCH = 32  # images in each
TRAINED = ("snapfusion", "smaller_faster_sd", "sparsedm")  # train while they prune
STANDARD_SETTINGS = (
    "diff_pruning.batch_size=32",
    "diff_pruning.stride=10",
    "taylor.batch_size=32",
    "taylor.stride=10",
    "ecodiff.prompts=16",
    "ecodiff.steps=8",
    "ecodiff.learning_rate=0.3",
    "ecodiff.beta=0.01",
    "snapfusion.judged=2",
    "snapfusion.robust_steps=40",
    "snapfusion.between_steps=4",
    f"snapfusion.block_steps={STANDARD_STEPS}",
    "smaller_faster_sd.judged=2",
    f"smaller_faster_sd.retrain_steps={STANDARD_STEPS}",
    f"sparsedm.steps={STANDARD_STEPS}",
    f"sparsedm.batch_size={STANDARD_BATCH}",
)
# A DiT block holds 12 % of the model, adaLN included: two gone leave 75.3 %, four 50.7 %.
STANDARD_PARAMS = {"fashion_dit": (0.76, 0.51)}
# Heads and neurons hold 35 % of the text-to-image U-Net: without all of them 65 % stays. Of the DiT
# they hold more MACs than parameters: shares are asked for, and 76 % and 46 % of the MACs stay.
OWN_SIZES = {
    ("fashion_t2i", "ecodiff"): ("ecodiff.params=0.75",),
    ("fashion_dit", "ecodiff"): ("ecodiff.ratio=0.27", "ecodiff.ratio=0.52"),
}
# What their authors train with, beside the retraining that all methods get.
STANDARD_DISTILLATION = {
    "bk_sdm": (),
    "laptop_diff": ("distill.normalise=squared",),
}
UNSTRUCTURED_SETTINGS = ("magnitude.unit=weight", "magnitude.ratio=0.5")


@dataclass(frozen=True)
class Sweep:
    """Which recipes are run: methods x sizes x retraining x seeds, plus the dense model."""

    task: str
    methods: tuple[str, ...]
    macs: tuple[float, ...] = ()  # MACs left, (0, 1]
    params: tuple[float, ...] = ()  # parameters left, (0, 1], of methods that are not asked by MACs
    ratios: tuple[float, ...] = ()  # channels removed, [0, 1)
    seeds: tuple[int, ...] = (0,)
    finetune_steps: tuple[int, ...] = (0,)  # optimizer steps; 0: no retraining
    recovery: str = results.RECOVERY  # the retraining behind every method, or distill
    assignments: tuple[str, ...] = ()  # METHOD.KEY=VALUE, applied wherever the method occurs

    def recipes(self) -> tuple[Recipe, ...]:
        """Every recipe once; the dense model comes first whether it was named or not.

        Raises:
            ValueError: unknown methods, settings or sizes, or nothing to compare.
        """
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("--seeds: name at least one seed, and each once")
        if any(steps < 0 for steps in self.finetune_steps) or not self.finetune_steps:
            raise ValueError("--finetune-steps: whole numbers from 0 on")
        subjects = [name for name in dict.fromkeys(self.methods) if name != "dense"]
        recoveries = [m.name for m in registry.methods() if m.card.get("role") == "recovery"]
        if self.recovery not in recoveries:
            raise ValueError(
                registry.unknown(f"--recovery {self.recovery!r}", self.recovery, recoveries)
            )
        changes = registry.parse_assignments(self.assignments, [*subjects, "dense", self.recovery])
        found: list[Recipe] = [(Stage.of("dense"),)]
        for name in subjects:
            if name in recoveries:
                raise ValueError(f"{name} retrains what another method pruned: --finetune-steps")
            for stage in self._sizes(name, changes.get(name, {})):
                for steps in self.finetune_steps:
                    found.append((stage, *self._retraining(steps, changes)))
        registry.check_task(self.task, [*subjects, "dense"])
        return tuple(found)

    def _sizes(self, name: str, changes: registry.Settings) -> list[Stage]:
        """One stage for each size asked for, in the method's own currency.

        Channels are asked by MACs, layers, heads and neurons by parameters, both by ratio. A method
        of one size (fixed lists, sparsity in dense tensors) runs once, as it is set.
        """
        defaults = registry.describe(name).defaults
        currency = next((key for key in ("macs", "params") if key in defaults), None)
        if currency is None or changes.keys() & {"macs", "params", "ratio"}:
            return [Stage.of(name, **changes)]
        sizes: list[registry.Settings]
        sizes = [{currency: size} for size in (self.macs if currency == "macs" else self.params)]
        if "ratio" in defaults:
            sizes += [{"ratio": r} for r in self.ratios]
            if not sizes:
                raise ValueError(f"{name} needs a size: give --{currency} 0.75,0.5 or --ratios 0.3")
        return [Stage.of(name, **(changes | size)) for size in sizes or [{}]]

    def _retraining(self, steps: int, changes: dict[str, registry.Settings]) -> tuple[Stage, ...]:
        if steps == 0:
            return ()
        return (Stage.of(self.recovery, **(changes.get(self.recovery, {}) | {"steps": steps})),)


@dataclass(frozen=True)
class Places:
    """Where a sweep reads and writes."""

    records: Path  # <task>/<recipe>/<seed>.json beneath
    runs: Path  # models and images, beneath likewise
    report: Path  # table.json, pareto.png, samples.png, report.html, journal.jsonl

    @classmethod
    def standard(cls) -> Places:
        """The committed results."""
        return cls(RESULTS, RUNS, COMPARISON)

    @classmethod
    def under(cls, folder: Path) -> Places:
        """Everything in one folder."""
        return cls(folder / "records", folder / "runs", folder)

    @property
    def journal(self) -> Path:
        return self.report / "journal.jsonl"


@dataclass(frozen=True)
class Outcome:
    """What a sweep did; `failures` are (recipe, seed, reason)."""

    done: int
    skipped: int
    failures: tuple[tuple[str, int, str], ...]


Progress = Callable[[int, int, str], None]  # runs finished, runs in all, the current one


def run_sweep(
    bench: Bench,
    sweep: Sweep,
    places: Places,
    *,
    same_code: bool = False,
    progress: Progress = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Run what is not on disk yet, seed by seed.

    A record that is whole and answers the same question is left alone; a damaged one is reported
    and done again. With `same_code` a record made by other code of the harness or the method is
    done again too. A recipe that a method refuses is reported and the others go on.
    """
    recipes = sweep.recipes()
    total = len(recipes) * len(sweep.seeds)
    done, skipped = 0, 0
    failures: list[tuple[str, int, str]] = []

    def note(event: str, recipe: Recipe, seed: int, **more: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"event": event, "recipe": registry.slug(recipe), "seed": seed, "date": now}
        journal.append(places.journal, entry | more)

    for seed in sweep.seeds:
        for recipe in recipes:
            slug = registry.slug(recipe)
            path = record_path(places.records, sweep.task, recipe, seed)
            if path.exists():
                try:
                    results.load(path)  # every field is there and the path is its key
                    record = read_record(path)
                except ValueError as error:
                    warn(f"{error}")
                    note("damaged", recipe, seed)
                else:
                    current = is_current(record, bench, recipe, seed)
                    made_by = record["provenance"]["code_sha256"]
                    if current and not (same_code and made_by != code_sha256(recipe)):
                        skipped += 1
                        continue
            progress(done + skipped + len(failures), total, f"{slug}, seed {seed}")
            note("start", recipe, seed)
            try:
                record = bench.run(recipe, seed, run_folder(places.runs, sweep.task, recipe, seed))
            except ValueError as error:
                failures.append((slug, seed, str(error)))
                note("failed", recipe, seed, reason=str(error))
                warn(f"{slug}, seed {seed}: {error}")
                continue
            write_record(path, record)
            note("done", recipe, seed)
            done += 1
    progress(total, total, "")
    return Outcome(done, skipped, tuple(failures))


def sweep_table(sweep: Sweep, places: Places) -> results.Table:
    """The table of this sweep's records, read back from disk.

    Raises:
        results.ResultsError: a record is damaged, or there is none.
    """
    paths = [
        record_path(places.records, sweep.task, recipe, seed)
        for recipe in sweep.recipes()
        for seed in sweep.seeds
    ]
    return results.tabulate([results.load(path) for path in paths if path.exists()])


def write_report(
    sweep: Sweep,
    places: Places,
    table: results.Table,
    failures: Sequence[tuple[str, int, str]] = (),
    *,
    committed: results.Table | None = None,
) -> None:
    """Write table.json, pareto.png, samples.png and report.html into `places.report`.

    Rows of `table` are marked `measured now`; those of `committed` stand in a table of their own,
    marked `committed result`, since their protocol is another one.
    """
    places.report.mkdir(parents=True, exist_ok=True)
    data = {
        "measured_now": table,
        "committed": committed,
        "failures": [{"recipe": r, "seed": s, "reason": why} for r, s, why in failures],
    }
    text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"
    journal.write_text(places.report / "table.json", text)
    report.draw_pareto(table, places.report / "pareto.png")
    images = kept_images(table, places.runs, sweep.seeds[0])
    rows = [(row, images[row["slug"]]) for row in table["rows"] if row["slug"] in images]
    report.draw_samples(rows, places.report / "samples.png")
    page = report.page(
        table,
        committed=committed,
        failures=failures,
        pareto=(places.report / "pareto.png").read_bytes(),
        samples=(places.report / "samples.png").read_bytes(),
    )
    journal.write_text(places.report / "report.html", page)


def kept_images(table: results.Table, runs: Path, seed: int) -> dict[str, Tensor]:
    """First images (N, C, H, W) of this seed by the row's slug, where they were kept.

    One seed for all rows: only then does a column of a grid start from the same noise.
    """
    found = {}
    for row in table["rows"]:
        path = runs / table["task"] / row["slug"] / str(seed) / "samples.safetensors"
        if path.exists():
            found[row["slug"]] = read_tensors(path)[0]["images"][:PICTURED]
    return found


def standard_sweeps(
    task: str, seeds: tuple[int, ...] = STANDARD_SEEDS, only: Sequence[str] = ()
) -> tuple[Sweep, ...]:
    """The comparison that is committed: every method that handles the task, `only` some of them.

    Channels at three quarters and a half of the MACs, layers, heads and neurons at as many
    parameters, half of the weights zeroed where tensors stay dense; without retraining and with
    one budget for all. Methods that train as they prune get that budget for themselves.

    Raises:
        ValueError: `only` names a method that is not compared on this task.
    """
    able = [
        method.name
        for method in registry.methods()
        if task in method.card["tasks"] and method.card.get("role") != "recovery"
    ]
    for name in only:
        if name not in able:
            raise ValueError(registry.unknown(f"method {name!r} of the comparison", name, able))
    chosen = [name for name in able if name != "dense" and (not only or name in only)]

    def sweep(
        names: Sequence[str],
        steps: tuple[int, ...],
        *assignments: str,
        recovery: str = results.RECOVERY,
    ) -> Sweep:
        methods = tuple(name for name in chosen if name in names)
        changes = [text for text in assignments if text.split(".")[0] in (*methods, recovery)]
        return Sweep(
            task,
            methods,
            macs=STANDARD_SIZES,
            params=STANDARD_PARAMS.get(task, STANDARD_SIZES),
            seeds=seeds,
            finetune_steps=steps,
            recovery=recovery,
            assignments=(*changes, f"{recovery}.batch_size={STANDARD_BATCH}"),
        )

    own = {name: sizes for (where, name), sizes in OWN_SIZES.items() if where == task}
    cut = [name for name in able if name not in (*TRAINED, *own, "dense")]
    both = (0, STANDARD_STEPS)
    sweeps = (
        sweep(cut, both, *STANDARD_SETTINGS),
        *(
            sweep((name,), both, *STANDARD_SETTINGS, size)
            for name, sizes in own.items()
            for size in sizes
        ),
        sweep(TRAINED, (0,), *STANDARD_SETTINGS),
        sweep(("magnitude",), both, *UNSTRUCTURED_SETTINGS),
        *(
            sweep((name,), (STANDARD_STEPS,), *terms, recovery="distill")
            for name, terms in STANDARD_DISTILLATION.items()
        ),
    )
    return tuple(s for s in sweeps if s.methods) or (sweep((), (0,)),)


def quick_sweep(task: str) -> Sweep:
    """What `make compare` runs."""
    return Sweep(
        task=task,
        methods=QUICK_METHODS,
        macs=QUICK_MACS,
        finetune_steps=QUICK_FINETUNE,
        assignments=QUICK_SETTINGS,
    )


def quick_protocol(precision: str) -> Protocol:
    """How `make compare` measures."""
    return replace(QUICK_PROTOCOL, precision=precision)
