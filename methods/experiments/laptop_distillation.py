"""After the same cut, what do the dense model's answers and features add to plain retraining?

`laptop_diff` cuts the base once for every seed; what is left is retrained with equal numbers of
optimizer steps on the same batches: on the denoising loss alone (`finetune`), with the dense
model's answers and stage features beside it (`distill`), and with every feature term divided by the
teacher's own size, in both readings of the paper's words ("norm" and "squared"). Judged by the
squared error to the dense model's answers on noised images that were not trained on, and by the
images: Fréchet distance, agreement with the request, difference from the dense images at the same
noise. The row without retraining shows what there is to recover.

Expect: `python -m methods experiment laptop_distillation`, 24 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from methods import laptop_diff
from methods.harness.calibration import calibration
from methods.harness.experiment import Column, Finding, Lab, Paired, Value, paired_logs, verdict_of
from methods.harness.pipeline import Pipeline
from methods.harness.run import Bench
from methods.registry import Stage

CARD = {
    "methods": ["laptop_diff", "distill", "finetune"],
    "task": "fashion_t2i",
    "bar": "at equal steps the error to the dense model's answers is smaller with distillation "
    "than with the denoising loss alone, and smaller with normalised than with plain features, "
    "by the 95 % interval over seeds",
    "source": "LAPTOP-Diff, arXiv 2404.11098, normalised feature distillation; BK-SDM, arXiv "
    "2305.15798, output and feature distillation",
}
ARMS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "cut alone": None,
    "denoising loss": ("finetune", {}),
    "plain features": ("distill", {"normalise": "none"}),
    "norm": ("distill", {"normalise": "norm"}),
    "squared": ("distill", {"normalise": "squared"}),
}
COLUMNS = (
    Column("arm", "retraining"),
    Column("seed", "seed"),
    Column("answer", "error to dense answers", 5),
    Column("frechet", "Fréchet distance", 1),
    Column("agreement", "agreement", 3),
    Column("mse_to_dense", "images: error to dense", 4),
)


@dataclass(frozen=True)
class Config:
    """The cut, the budget of retraining, and what the answers are compared on."""

    params: float = 0.5  # of the denoiser's parameters stay, as in the paper
    scored: int = 32  # images that the cut is chosen on
    scored_timesteps: int = 8  # noise levels of each
    steps: int = 80  # optimizer steps
    batch_size: int = 32
    learning_rate: float = 2e-4
    held_out: int = 128  # images that answers are compared on
    timesteps: int = 8  # noise levels of each


def investigate(lab: Lab, config: Config) -> Finding:
    """Cut, retrain in every way, and judge, for every seed."""
    bench = lab.bench("fashion_t2i")
    rows: list[dict[str, Value]] = []
    for seed in lab.seeds:
        rows += rate(bench, seed, config)
    return judge(rows)


def rate(bench: Bench, seed: int, config: Config) -> list[dict[str, Value]]:
    """One row for each way to retrain."""
    cut = Stage.of(
        "laptop_diff",
        params=config.params,
        batch_size=config.scored,
        timesteps=config.scored_timesteps,
    )
    rows: list[dict[str, Value]] = []
    for arm, retraining in ARMS.items():
        recipe: tuple[Stage, ...] = (cut,)
        if retraining is not None:
            method, changes = retraining
            budget = {
                "steps": config.steps,
                "batch_size": config.batch_size,
                "learning_rate": config.learning_rate,
            }
            recipe = (cut, Stage.of(method, **budget, **changes))
        pipe, _, _ = bench.compress(recipe, seed)
        _, quality = bench.quality(pipe, seed)
        rows.append(
            {
                "arm": arm,
                "seed": seed,
                "answer": answer_error(bench, pipe, seed, config),
                "frechet": quality["frechet"],
                "agreement": agreed(quality),
                "mse_to_dense": quality["mse_to_dense"],
            }
        )
    return rows


def answer_error(bench: Bench, pipe: Pipeline, seed: int, config: Config) -> float:
    """Mean squared error to the dense model's answers on images that were not trained on."""
    batches = calibration(
        bench.task_at(seed), config.held_out, config.timesteps, "laptop_diff/held out"
    )
    dense = laptop_diff.outputs(bench.dense.denoiser, batches)
    return laptop_diff.damage(pipe.denoiser, batches, dense, [])


def agreed(quality: Mapping[str, Any]) -> float | None:
    """Images that show all that was asked for, as a fraction; None where nothing can be asked."""
    found = quality.get("agreement")
    return None if found is None else float(found.get("all", found.get("class")))


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from the intervals of log ratios over seeds."""

    def compare(arm: str, rival: str, key: str = "answer") -> Paired:
        one, other = (
            [float(row[key] or 0.0) for row in rows if row["arm"] == name] for name in (arm, rival)
        )
        return paired_logs(one, other)

    distilled = {
        arm: compare(arm, "denoising loss") for arm in ("plain features", "norm", "squared")
    }
    normalised = {arm: compare(arm, "plain features") for arm in ("norm", "squared")}
    images = {arm: compare(arm, "denoising loss", "frechet") for arm in distilled}
    missed = [
        f"{arm} against the denoising loss alone"
        for arm, pair in distilled.items()
        if not pair.below
    ]
    missed += [
        f"{arm} against plain features" for arm, pair in normalised.items() if not pair.below
    ]
    count = len(distilled) + len(normalised)
    verdict = verdict_of(len(missed), count)
    answer = (
        f"Error to the dense answers over that with the denoising loss alone: {told(distilled)}; "
        f"over that with plain features: {told(normalised)}. Fréchet distance over that with the "
        f"denoising loss alone: {told(images)}."
    )
    why = f"no surely smaller error for {'; '.join(missed)}" if missed else ""
    return Finding(verdict, answer, COLUMNS, tuple(rows), why)


def told(pairs: Mapping[str, Paired]) -> str:
    return ", ".join(f"{arm} {pair.ratio}" for arm, pair in pairs.items())
