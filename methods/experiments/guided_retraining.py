"""Does retraining on guided answers bring back what guided sampling needs?

The trained base loses blocks once for each seed, as `smaller_faster_sd` chooses them. The same
pruned model is then retrained on the same batches, for equal optimizer steps, in four ways: plain
distillation (p = 0 of the method's loss), guided distillation every other time (the method's
default p), guided always (p = 1), and plain again with the empty request added to every batch.
The last one is there because a guided answer is made of two: where p is 1 half of what the student
sees is the empty request, and that alone might be what helps.

Every model is judged on held-out images, requests and noise against the dense model: error of the
guided answer at w = 7.5, of the plain answer, and the gap of the null branches, that is of the
answers to the empty request. Errors are compared on a logarithm. The bar is set on guided always,
where the effect must be largest; the abstract that the loss is reconstructed from says neither how
often it is used nor how large the effect is, so the outcome is consistent with it or not, no more.

At this scale: 80 optimizer steps of guided answers bring those closer to the dense model's, at the
cost of plain ones, as expected; the answers to the empty request hardly move apart or together, and
most of the gain is also there where plain answers see the empty request.

Expect: `python -m methods experiment guided_retraining`, 27 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods import smaller_faster_sd
from methods.harness.denoise import Condition
from methods.harness.experiment import Column, Finding, Lab, Paired, Value, paired_logs, verdict_of
from methods.harness.judge import held_out_judges
from methods.harness.pipeline import NoisedBatch, Pipeline, Task
from methods.harness.run import Bench
from methods.harness.train import Recipe, retrain

CARD = {
    "methods": ["smaller_faster_sd"],
    "task": "fashion_t2i",
    "bar": "after equal optimizer steps guided distillation leaves a lower error of the guided "
    "answer at w = 7.5, and a smaller gap of the null branches, than plain distillation, by the "
    "95 % interval over seeds",
    "source": "OpenReview t9m14jybcI, abstract: a CFG-aware retraining loss is critical",
}
TASK = "fashion_t2i"
PLAIN, SOMETIMES, ALWAYS, ADDED = "plain", "guided sometimes", "guided always", "plain, empty added"
COLUMNS = (
    Column("loss", "retraining"),
    Column("seed", "seed"),
    Column("guided", "guided error, w 7.5", 4),
    Column("unguided", "plain error", 5),
    Column("null", "gap of null branches", 5),
)


@dataclass(frozen=True)
class Config:
    """One pruned model for each seed, retrained in four ways."""

    params: float = 0.54  # denoiser parameters left at most
    judged: int = 2  # batches that blocks are chosen on
    retrain_steps: int = 80  # optimizer steps of every retraining
    batch_size: int = 32
    probability: float = 0.5  # of the guided loss where it is used sometimes: the method's default
    feature_weight: float = 1.0  # of L_feat, in all four
    learning_rate: float = 2e-4
    guidance: float = 7.5  # w that guided answers are judged at
    held_out: int = 64  # images a batch that retraining is judged on
    timesteps: int = 8  # batches of them, each with its own timesteps


def investigate(lab: Lab, config: Config) -> Finding:
    """Prune, retrain in four ways and judge, for every seed."""
    rows: list[dict[str, Value]] = []
    for seed in lab.seeds:
        rows += rate(lab, lab.bench(TASK), seed, config)
    return judge(rows)


def rate(lab: Lab, bench: Bench, seed: int, config: Config) -> list[dict[str, Value]]:
    """One row for each way of retraining."""
    task = bench.task_at(seed)
    method = smaller_faster_sd.Config(judged=config.judged, batch_size=config.batch_size)
    lab.report(f"seed {seed}: choose blocks")
    pruned, _ = smaller_faster_sd.remove(bench.dense.private_copy(), task, method, config.params)
    judges = held_out_judges(
        task, config.held_out, config.timesteps, config.guidance, "guided_retraining"
    )
    rows: list[dict[str, Value]] = []
    for loss, probability, added in (
        (PLAIN, 0.0, False),
        (SOMETIMES, config.probability, False),
        (ALWAYS, 1.0, False),
        (ADDED, 0.0, True),
    ):
        lab.report(f"seed {seed}: retrain, {loss}")
        student = retrained(pruned, task, config, probability, added, lab.protocol.precision)
        errors = {name: one.error(student.denoiser) for name, one in judges.items()}
        rows.append({"loss": loss, "seed": seed, **errors})
    return rows


def retrained(
    pruned: Pipeline,
    task: Task,
    config: Config,
    probability: float,
    added: bool,
    precision: str,
) -> Pipeline:
    """A retrained copy; with `added` every batch is seen with the empty request too."""
    student = pruned.private_copy()
    objective = smaller_faster_sd.GuidedDistillation(
        task.dense.denoiser,
        task.dense.nothing,
        task.seed,
        probability,
        feature_weight=config.feature_weight,
    )
    batches = task.training_batches(config.batch_size)
    if added:
        batches = with_empty(batches, task.dense.nothing(config.batch_size))
    recipe = Recipe.short(config.retrain_steps, config.batch_size, config.learning_rate, precision)
    retrain(student.denoiser, batches, recipe, objective)
    return student


def with_empty(batches: Iterator[NoisedBatch], null: Condition) -> Iterator[NoisedBatch]:
    """Every batch twice in one: with the empty requests, then with its own."""

    def twice(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor])

    for batch in batches:
        yield NoisedBatch(
            twice(batch.x0),
            twice(batch.noise),
            twice(batch.t),
            twice(batch.x_t),
            twice(batch.target),
            {key: torch.cat([null[key], value]) for key, value in batch.condition.items()},
        )


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from the intervals of log ratios over seeds."""

    def against(loss: str, rival: str, key: str) -> Paired:
        a, b = ([float(row[key] or 0) for row in rows if row["loss"] == x] for x in (loss, rival))
        return paired_logs(a, b)

    guided, null = (against(ALWAYS, PLAIN, key) for key in ("guided", "null"))
    missed = [
        name
        for name, pair in (("guided error", guided), ("gap of the null branches", null))
        if not pair.below
    ]
    verdict = verdict_of(len(missed), 2)
    answer = (
        f"Guided always over plain: guided error {guided.ratio}, gap of the null branches "
        f"{null.ratio}, plain error {against(ALWAYS, PLAIN, 'unguided').ratio}. Guided error of "
        f"guided sometimes over plain {against(SOMETIMES, PLAIN, 'guided').ratio}; of guided "
        f"always over plain with the empty request added {against(ALWAYS, ADDED, 'guided').ratio}."
    )
    why = f"not surely smaller after these optimizer steps: {', '.join(missed)}" if missed else ""
    return Finding(verdict, answer, COLUMNS, tuple(rows), why)
