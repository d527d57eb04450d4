"""Does BK-SDM's student need the teacher's answers, and the teacher's weights?

The base loses BK-SDM-Base's list of blocks. Four students of that one shape are trained on the same
batches for equal optimizer steps: with what is left of the teacher's weights or with random ones,
each on the denoising task alone or on task, output and features as BK-SDM trains. They are judged
by the mean squared error of their answers to the dense model's on held-out images, requests and
noise, plain and guided as the base samples.

Errors are compared on a logarithm, in pairs over seeds. A step of distillation costs about a third
more time than one on the task, since the teacher runs too; steps are equal here, not seconds.

At this scale: from random weights distillation raises the error after 100 optimizer steps, 1.48
times. Whether it would be worth its price later on was not measured.

Expect: `python -m methods experiment bk_sdm_distillation`, 16 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from methods import bk_sdm
from methods.harness.distill import Distillation
from methods.harness.edits import replay
from methods.harness.experiment import Column, Finding, Lab, Paired, Value, paired_logs, verdict_of
from methods.harness.judge import held_out_judges
from methods.harness.pipeline import Pipeline
from methods.harness.run import Bench
from methods.harness.train import Recipe, retrain

CARD = {
    "methods": ["bk_sdm", "distill"],
    "task": "fashion_t2i",
    "bar": "after equal optimizer steps the error of the student's answers is lower with output "
    "and feature distillation than with the task alone, from copied and from random weights, and "
    "lower from copied than from random weights, with either loss, by the 95 % interval over seeds",
    "source": "BK-SDM, arXiv 2305.15798: distillation retraining from copied weights",
}
TASK = "fashion_t2i"
COPIED, RANDOM = "copied", "random"
ALONE, DISTILLED = "task", "task, output, features"
COLUMNS = (
    Column("weights", "weights at the start"),
    Column("loss", "loss"),
    Column("seed", "seed"),
    Column("unguided", "error of the answer", 5),
    Column("guided", "of the guided answer", 4),
)


@dataclass(frozen=True)
class Config:
    """The training that all four students get."""

    retrain_steps: int = 100  # optimizer steps
    batch_size: int = 32
    learning_rate: float = 2e-4
    held_out: int = 64  # images a batch that students are judged on
    timesteps: int = 8  # batches of them, each with its own timesteps


def investigate(lab: Lab, config: Config) -> Finding:
    """Train four students for every seed and judge them."""
    rows: list[dict[str, Value]] = []
    for seed in lab.seeds:
        rows += rate(lab, lab.bench(TASK), seed, config)
    return judge(rows)


def rate(lab: Lab, bench: Bench, seed: int, config: Config) -> list[dict[str, Value]]:
    """One row for each student."""
    task = bench.task_at(seed)
    copied, _ = bk_sdm.compress(bench.dense.private_copy(), task, bk_sdm.Config())
    fresh = fresh_weights(copied, int(task.generator("fresh weights").initial_seed()))
    judges = held_out_judges(
        task, config.held_out, config.timesteps, bench.dense.guidance, "bk_sdm_distillation"
    )
    recipe = Recipe.short(
        config.retrain_steps, config.batch_size, config.learning_rate, lab.protocol.precision
    )
    rows: list[dict[str, Value]] = []
    for weights, start in ((COPIED, copied), (RANDOM, fresh)):
        for loss, weight in ((ALONE, 0.0), (DISTILLED, 1.0)):
            lab.report(f"seed {seed}: train {weights} weights on {loss}")
            student = start.private_copy()
            objective = Distillation(
                task.dense.denoiser, output_weight=weight, feature_weight=weight
            )
            retrain(student.denoiser, task.training_batches(config.batch_size), recipe, objective)
            errors = {key: judges[key].error(student.denoiser) for key in ("unguided", "guided")}
            rows.append({"weights": weights, "loss": loss, "seed": seed, **errors})
    return rows


def fresh_weights(pipe: Pipeline, seed: int) -> Pipeline:
    """The same pruned architecture with the weights that diffusers starts it with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(pipe.denoiser).from_config(pipe.config)  # type: ignore[attr-defined]
    replay(model, pipe.edits)
    return replace(pipe, denoiser=model.to(pipe.device))


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from the intervals of log ratios over seeds."""

    def values(weights: str, loss: str, key: str) -> list[float]:
        return [float(r[key] or 0) for r in rows if (r["weights"], r["loss"]) == (weights, loss)]

    def against(one: tuple[str, str], other: tuple[str, str], key: str = "unguided") -> Paired:
        return paired_logs(values(*one, key), values(*other, key))

    pairs = {}
    for weights in (COPIED, RANDOM):
        name = f"{DISTILLED} over {ALONE} from {weights} weights"
        pairs[name] = against((weights, DISTILLED), (weights, ALONE))
    for loss in (DISTILLED, ALONE):
        name = f"{COPIED} over {RANDOM} weights with {loss}"
        pairs[name] = against((COPIED, loss), (RANDOM, loss))
    guided = against((COPIED, DISTILLED), (COPIED, ALONE), "guided")
    missed = [
        f"{name} ({'surely higher' if pair.above else 'no order'})"
        for name, pair in pairs.items()
        if not pair.below
    ]
    verdict = verdict_of(len(missed), len(pairs))
    said = "; ".join(f"{name}: {pair.ratio}" for name, pair in pairs.items())
    answer = (
        f"Error of the student's answers: {said}. Of the guided answer, {DISTILLED} over {ALONE} "
        f"from copied weights: {guided.ratio}."
    )
    why = f"not surely lower after these optimizer steps: {', '.join(missed)}" if missed else ""
    return Finding(verdict, answer, COLUMNS, tuple(rows), why)
