"""Does it take the whole sampling run to learn gates, or do single denoiser answers do?

`ecodiff` learns three times, with equal numbers of optimizer steps and denoiser calls: on the last
latent with the penalty of the released code (l1), on the last latent with the paper's, the expected
number of open gates (l0), and on single answers along the dense run (step, with l1), which is what
the paper calls a per-step loss. Each ranking keeps equal numbers of heads and neurons in every
layer. Each has a few weights of its penalty to choose from, for each size the one whose last latent
is best on the noise that was learned from. Judged from other noise by the mean squared error of the
last latent, and by that of single answers, the per-step loss's own measure.

At this scale: after 16 optimizer steps on 16 requests the per-step loss is surely ahead by its own
measure, at both sizes and against both penalties, and by the last latent no order is sure; in the
seeds where one is far ahead it is again the per-step loss. Its every answer is a target, the last
latent is one for 8 steps, so it may just learn faster; more optimizer steps were not tried.

Expect: `python -m methods experiment ecodiff_objective`, 11 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from methods import ecodiff
from methods.harness.experiment import Column, Finding, Lab, Value, paired_logs, verdict_of
from methods.harness.pipeline import Pipeline, Task
from methods.harness.run import Bench
from methods.harness.trajectory import answers_error, masked_error, start
from methods.harness.width import width_layers

CARD = {
    "methods": ["ecodiff"],
    "task": "fashion_dit",
    "bar": "with either penalty the last latent's error of gates learned end to end lies below "
    "that of gates learned on single answers, at both sizes, by the 95 % interval over seeds",
    "source": "EcoDiff, arXiv 2412.02852: the end-to-end objective against a per-step loss",
}
ARMS = ("l1", "l0", "step")
COLUMNS = (
    Column("ratio", "units removed", 2),
    Column("seed", "seed"),
    *(Column(f"{arm}_latent", f"last latent, {arm}", 4) for arm in ARMS),
    *(Column(f"{arm}_answer", f"single answers, {arm}", 4) for arm in ARMS),
)


@dataclass(frozen=True)
class Config:
    """What is learned from what, and how it is judged."""

    low: float = 0.2  # of all heads and of all neurons removed from every layer
    high: float = 0.4  # the same, the second size
    prompts: int = 16  # requests that are learned from
    epochs: int = 8
    batch_size: int = 8  # requests per optimizer step
    steps: int = 8  # sampling steps, of learning and of judging
    learning_rate: float = 0.2  # of lambda
    beta: float = 0.01  # largest weight of l1 that is tried
    beta_l0: float = 1e-4  # of l0, which adds up units where l1 averages them
    betas: int = 2  # weights that are tried, each a tenth of the one before
    held_out: int = 32  # requests that are judged with


def investigate(lab: Lab, config: Config) -> Finding:
    """Learn with each objective for every seed, and judge."""
    bench = lab.bench("fashion_dit")
    rows: list[dict[str, Value]] = []
    for seed in lab.seeds:
        lab.report(f"seed {seed}: learn the gates with each objective")
        rows += rate(bench, seed, config)
    return judge(rows)


def rate(bench: Bench, seed: int, config: Config) -> list[dict[str, Value]]:
    """One row for each size."""
    around = bench.task_at(seed)
    pipe = bench.dense.private_copy()
    pipe.denoiser.eval().requires_grad_(False)
    layers = width_layers(pipe.denoiser)
    run, x = start(pipe, around, config.steps, config.held_out, "ecodiff/held out")
    known, origin = start(
        pipe, around, config.steps, config.prompts, "ecodiff"
    )  # what is learned from
    with torch.no_grad():
        dense = run.latents(x)
        goal = known.latents(origin)[-1]
    rows: list[dict[str, Value]] = [
        {"ratio": ratio, "seed": seed} for ratio in (config.low, config.high)
    ]
    for arm in ARMS:
        tried = [learn(pipe, around, arm, 10**-power, config) for power in range(config.betas)]
        for row, ratio in zip(rows, (config.low, config.high), strict=True):
            keeps = [ecodiff.select_units(layers, found, ratio, "local") for found in tried]
            keep = min(keeps, key=lambda some: masked_error(known, origin, goal, layers, some))
            row[f"{arm}_latent"] = masked_error(run, x, dense[-1], layers, keep)
            row[f"{arm}_answer"] = answers_error(run, dense, layers, keep)
    return rows


def learn(
    pipe: Pipeline, around: Task, arm: str, part: float, config: Config
) -> Mapping[str, torch.Tensor]:
    """Lambda by layer, learned with one of the objectives and `part` of its largest penalty."""
    chosen = ecodiff.Config(
        ratio=config.low,
        prompts=config.prompts,
        epochs=config.epochs,
        batch_size=config.batch_size,
        steps=config.steps,
        learning_rate=config.learning_rate,
        beta=part * (config.beta_l0 if arm == "l0" else config.beta),
        regulariser="l0" if arm == "l0" else "l1",
        objective="step" if arm == "step" else "trajectory",
    )
    return ecodiff.learn(pipe, around, width_layers(pipe.denoiser), chosen)[0]


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from the intervals of log ratios over seeds."""
    found, own = {}, {}
    for ratio in dict.fromkeys(row["ratio"] for row in rows):
        here = [row for row in rows if row["ratio"] == ratio]
        for arm in ("l1", "l0"):
            name = f"{arm}, {ratio} removed"
            found[name] = paired_logs(values(here, f"{arm}_latent"), values(here, "step_latent"))
            own[name] = paired_logs(values(here, f"{arm}_answer"), values(here, "step_answer"))
    missed = [name for name, pair in found.items() if not pair.below]
    verdict = verdict_of(len(missed), len(found))
    answer = (
        "Last latent's error, end to end over per-step: "
        + "; ".join(f"{name}: {pair.ratio}" for name, pair in found.items())
        + ". Error of single answers, the same: "
        + "; ".join(f"{name}: {pair.ratio}" for name, pair in own.items())
        + "."
    )
    why = f"no surely smaller error of the last latent: {'; '.join(missed)}" if missed else ""
    return Finding(verdict, answer, COLUMNS, tuple(rows), why)


def values(rows: Sequence[Mapping[str, Value]], key: str) -> list[float]:
    """One column as numbers."""
    return [float(row[key] or 0.0) for row in rows]
