"""Reconstructed: drop the blocks that guided answers miss least, retrain, distil to fewer steps.

A RECONSTRUCTION from the abstract alone: H. Wang and H. Wang, "Improved Techniques for Training
Smaller and Faster Stable Diffusion", ICLR 2025 workshop DeLTa, OpenReview t9m14jybcI. No code and
no full text could be read, so what this shows is consistent with the abstract at most, never a
reproduction. The abstract names four things: blocks of Stable Diffusion v2.1-base's U-Net are
removed by an improved performance sensitivity (46 % of the parameters), a retraining loss and a
step distillation both know of classifier-free guidance (CFG), and 25 steps become 8. How, is ours:

1. Sensitivity. G_w(eps) = eps(null) + w (eps(c) - eps(null)) is what a sampler uses, so it is what
   is judged. With D(R) the mean of ||G_w(eps_R) - G_w(eps_T)||^2 over data, noise, timesteps and w,
   where the blocks R are gone, and T the dense model,

       S_b = (D(R + b) - D(R)) / params_b,

   the block of least S_b goes, and all others are scored again, until few enough parameters are
   left. Blocks are ResNets and whole transformers of a U-Net, blocks of a DiT. One whose absence
   brings the answers closer to the dense model's has S_b < 0 and goes first.
2. Retraining: L = L_task + L_out + L_feat, as BK-SDM (arXiv 2305.15798), but with probability p
   L_out = ||G_w(eps_S) - G_w(eps_T)||^2 with one w ~ U[2, 14] for the iteration, through both
   answers of the student; otherwise ||eps_S(c) - eps_T(c)||^2.
3. Steps: SnapFusion's CFG-aware distillation (arXiv 2306.00980, Eq. 6-11, of which the second
   author is one) from the dense model, `harness/step_distill.py`. 25 is no multiple of 8, so the
   teacher takes the nearest whole number of steps for each of the student's: 24 -> 8, in one stage.

Choices nobody published: the mean square as the measure of quality, blocks one by one, w in the
middles of equal parts of [2, 14] for scoring, no weights on the three losses, features of both
answers where the guided one is matched, p = 1/2 (SnapFusion's is for its distillation), gradients
cut to norm 1, budgets.
What a block holds beyond what is still to be removed does not count in params_b, and at the end
blocks come back that the target can spare and that help; without this the last block taken is often
a large one and the model ends smaller than was asked for.

A base without requests has one answer: guidance has no effect there, and nothing is CFG-aware.

Of the abstract's 3.0x in wall clock, 25 / 8 = 3.125 times fewer steps would be enough alone: what
the smaller network saves and what stays as it was are not told apart, so no speed is expected here.

Expect: `python -m methods run smaller_faster_sd --task fashion_t2i --set
smaller_faster_sd.params=0.5 --set smaller_faster_sd.judged=2 --set
smaller_faster_sd.retrain_steps=100`. It is a row of `python -m methods standard --task
fashion_t2i`, whose records hold its time, machine, cost and scores with their spread. `--set
smaller_faster_sd.steps=8` distils to 8 steps behind it, and samples in those; a base that clips
predicted images, as `fashion_unet` does, is refused there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from .harness.calibration import calibration
from .harness.denoise import Condition, halves, predict
from .harness.depth import Unit, bypassed, drop, removable, requested
from .harness.distill import feature_loss, feature_pairs, recorded
from .harness.judge import Judge
from .harness.pipeline import NoisedBatch, Notes, Pipeline, Task, seeded
from .harness.step_distill import StepDistillation, rungs
from .harness.train import Recipe, retrain

CARD = {
    "paper": "smaller-faster-sd",
    "granularity": "structured",
    "unit": "block, timestep",
    "role": "method",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
    "reconstruction": True,
    "try": (
        "smaller_faster_sd.params=0.5",
        "smaller_faster_sd.judged=2",
        "smaller_faster_sd.retrain_steps=100",
    ),
}


@dataclass(frozen=True)
class Config:
    """Every stage can be left out; size and steps are the abstract's, w is SnapFusion's."""

    params: float | None = 0.54  # denoiser parameters left at most, (0, 1]; none: keep all blocks
    judged: int = 6  # batches of fixed requests and noise to judge blocks on, each with its w
    batch_size: int = 32
    retrain_steps: int = 150  # optimizer steps after the removal; 0: none
    probability: float = 0.5  # of the guided loss in retraining, p; our choice, none is published
    feature_weight: float = 1.0  # of L_feat
    steps: int | None = None  # sampling steps to distil to; none: leave them; the paper: 8
    from_steps: int = 25  # sampling steps of the teacher, made a multiple of `steps`
    distill_steps: int = 150  # optimizer steps of the distillation
    distill_probability: float = 0.1  # of its guided loss (SnapFusion, Fig. 7)
    original: float = 0.2  # weight of its denoising loss (SnapFusion, Fig. 7)
    w_low: float = 2.0
    w_high: float = 14.0
    learning_rate: float = 2e-4
    precision: Literal["bf16", "fp32"] = "bf16"  # autocast dtype of all training


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Remove, retrain, distil: the stages that are asked for, in the abstract's order."""
    if config.steps is not None:  # before anything is trained
        rungs(pipe.scheduler, config.steps, teacher_stride(config.from_steps, config.steps))
    notes: Notes = {"reconstruction": "from the abstract"}
    if config.params is not None:
        pipe, notes["blocks"] = remove(pipe, task, config, config.params)
    if config.retrain_steps:
        notes["losses"] = retraining(pipe, task, config)
    if config.steps is not None:
        pipe, notes["distilled"] = fewer_steps(pipe, task, config, config.steps)
    pipe.denoiser.eval()
    return pipe, notes


# --- sensitivity -----------------------------------------------------------------------------


def remove(pipe: Pipeline, task: Task, config: Config, params: float) -> tuple[Pipeline, Notes]:
    """Remove blocks until at most the fraction `params` of the parameters is left.

    Raises:
        ValueError: the model is of no known class, or the target cannot be met.
    """
    model = pipe.denoiser
    blocks = removable(model)
    wanted = requested(model, blocks, params, None)
    judge = judge_of(task, config)

    def error(names: Sequence[str]) -> float:
        with bypassed(model, names):
            return judge.error(model)

    names, notes = greedy(blocks, wanted, error)
    return drop(pipe, names), notes


def judge_of(task: Task, config: Config) -> Judge:
    """Who compares guided answers with the dense model's, at weights spread over the range."""
    batches = calibration(task, config.batch_size, config.judged, "smaller_faster_sd/judge")
    width = (config.w_high - config.w_low) / config.judged
    weights = [config.w_low + (k + 0.5) * width for k in range(config.judged)]
    return Judge.of(task.dense.denoiser, batches, weights, task.dense.nothing(config.batch_size))


def greedy(
    blocks: Sequence[Unit], wanted: int, error: Callable[[Sequence[str]], float]
) -> tuple[list[str], Notes]:
    """Names of blocks of together at least `wanted` parameters, and how they were found.

    `error` is D without the blocks named. The least sensitive block goes and all others are scored
    again. At the end blocks that are not needed come back, most helpful first. The notes hold S_b
    and D after every removal, and D after every return.
    """
    out: list[Unit] = []
    removed, returned = [], []
    now = error([])
    while (left := wanted - _params(out)) > 0:
        candidates = [block for block in blocks if block.params and block not in out]
        errors = [error(_names([*out, block])) for block in candidates]
        scores = sensitivities(candidates, [after - now for after in errors], left)
        least = scores.index(min(scores))
        block, now = candidates[least], errors[least]
        out.append(block)
        removed.append({"block": block.name, "sensitivity": scores[least], "error": now})
    while spare := [block for block in out if _params(out) - block.params >= wanted]:
        errors = [error(_names(b for b in out if b is not block)) for block in spare]
        if min(errors) >= now:
            break
        block, now = spare[errors.index(min(errors))], min(errors)
        out.remove(block)
        returned.append({"block": block.name, "error": now})
    return _names(out), {"removed": removed, "returned": returned}


def _names(blocks: Iterable[Unit]) -> list[str]:
    return [block.name for block in blocks]


def _params(blocks: Iterable[Unit]) -> int:
    return sum(block.params for block in blocks)


def sensitivities(candidates: Sequence[Unit], damages: Sequence[float], wanted: int) -> list[float]:
    """S_b: damage for each parameter that helps to remove the `wanted` (> 0) that are left."""
    return [
        damage / min(unit.params, wanted) for unit, damage in zip(candidates, damages, strict=True)
    ]


# --- retraining ------------------------------------------------------------------------------


@dataclass
class GuidedDistillation:
    """L_task + L_out + w_feat L_feat, where L_out is the guided one with probability p.

    Made for one training run: every call is an iteration with a draw of its own. The guided
    answers cost both models a batch of twice the size.
    """

    teacher: nn.Module
    null: Callable[[int], Condition]  # count -> empty requests
    seed: int
    probability: float = 0.5
    w_low: float = 2.0
    w_high: float = 14.0
    feature_weight: float = 1.0
    calls: int = 0

    def __call__(self, model: nn.Module, batch: NoisedBatch) -> Tensor:
        w = self._weight()
        pairs = feature_pairs(self.teacher, model) if self.feature_weight else {}
        null = self.null(len(batch.x_t))
        with torch.no_grad(), recorded(self.teacher, list(pairs)) as theirs:
            _, wanted = plain_and_guided(self.teacher, batch, null, w)
        with recorded(model, list(pairs.values())) as ours:
            plain, answer = plain_and_guided(model, batch, null, w)
        loss = (plain - batch.target).square().mean() + (answer - wanted).square().mean()
        if pairs:
            loss = loss + self.feature_weight * feature_loss(theirs, ours, pairs, "none")
        return loss

    def _weight(self) -> float:
        """w of the next iteration; 1, no guidance, with probability 1 - p."""
        draw = seeded(self.seed, f"smaller_faster_sd/w/{self.calls}")
        self.calls += 1
        aware, position = torch.rand(2, generator=draw).tolist()
        if aware >= self.probability:
            return 1.0
        return float(self.w_low + (self.w_high - self.w_low) * position)


def plain_and_guided(
    model: nn.Module, batch: NoisedBatch, null: Condition, w: float
) -> tuple[Tensor, Tensor]:
    """The model's answer to the batch's own requests and G_w, both (B, C, H, W) in float32."""
    if w == 1.0 or not batch.condition:
        plain = predict(model, batch.x_t, batch.t, batch.condition).float()
        return plain, plain
    answers = halves(model, batch.x_t, batch.t, batch.condition, null)
    unconditional, plain = (answer.float() for answer in answers)
    return plain, unconditional + w * (plain - unconditional)


def retraining(pipe: Pipeline, task: Task, config: Config) -> list[float]:
    """Train the pruned denoiser in place and return the losses."""
    objective = GuidedDistillation(
        task.dense.denoiser,
        task.dense.nothing,
        task.seed,
        config.probability,
        config.w_low,
        config.w_high,
        config.feature_weight,
    )
    recipe = _recipe(config, config.retrain_steps)
    return retrain(pipe.denoiser, task.training_batches(config.batch_size), recipe, objective)


def _recipe(config: Config, steps: int) -> Recipe:
    return Recipe.short(steps, config.batch_size, config.learning_rate, config.precision)


# --- steps -----------------------------------------------------------------------------------


def fewer_steps(pipe: Pipeline, task: Task, config: Config, steps: int) -> tuple[Pipeline, Notes]:
    """One stage of distillation from the dense model, at the pipeline's new number of steps.

    Raises:
        ValueError: the teacher would not take more steps than the student, or the scheduler's
            ladders do not fit.
    """
    stride = teacher_stride(config.from_steps, steps)
    objective = StepDistillation(
        task.dense.denoiser,
        pipe.scheduler,
        steps,
        task.dense.nothing,
        task.seed,
        config.distill_probability,
        config.w_low,
        config.w_high,
        config.original,
        stride,
    )
    recipe = _recipe(config, config.distill_steps)
    # Behind those of the retraining.
    batches = task.training_batches(config.batch_size, config.retrain_steps)
    losses = retrain(pipe.denoiser, batches, recipe, objective)
    taken = {"teacher_steps": stride * steps, "steps": steps, "losses": losses}
    return replace(pipe, steps=steps), taken


def teacher_stride(from_steps: int, steps: int) -> int:
    """Whole steps of the teacher for one of the student's: 25 and 8 give 3.

    Raises:
        ValueError: fewer than two, so that there is nothing to distil.
    """
    stride = round(from_steps / steps) if steps > 0 else 0
    if stride < 2:
        raise ValueError(
            f"steps={steps} from from_steps={from_steps}: the teacher has to take at least twice "
            "the student's steps"
        )
    return stride
