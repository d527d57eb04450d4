"""Train to tolerate missing blocks, drop those worth least a millisecond, halve the sampling steps.

Li et al., "SnapFusion: Text-to-Image Diffusion Model on Mobile Devices within Two Seconds", NeurIPS
2023, arXiv 2306.00980. No code was released; this follows the paper:

1. Robust training (Eq. 5): every ResNet and transformer block is left out with some probability,
   drawn once per batch; the loss stays the denoising loss.
2. Evolution (Alg. 1): value = (quality with - quality without) / (latency with - latency without)
   for every block. While the latency is above its target the group of lowest value goes; where
   there is latency to spare the block of highest value is repeated in place. Robust training goes
   on in between. Latency is measured block by block, once.
3. Decoder (`harness/decoder.py`): half of the channels of the autoencoder's decoder go,
   the rest learns to decode as the whole one did, on latents drawn by the dense model.
4. Step distillation (Eq. 6-11, `harness/step_distill.py`): one halving after the other, each taught
   by the larger model.

Differs from the paper in: quality is minus the squared error of guided answers to the dense
model's on fixed requests and noise, since CLIP judges no garments; a ResNet that changes the width
keeps its shortcut when it is left out (identity is impossible there) and is no candidate for
removal, and an up ResNet, which reads a skip, is none for repetition; robust skipping probability
and iterations are not published; nothing is repeated unless `additions` says so; gradients are cut
to norm 1 and weights do not decay (the paper: AdamW with decay 0.01, no cut named). Both bases
predict v already, so that there is nothing to convert (Eq. 6); a base that predicts noise is
distilled as it is.

Expect: `python -m methods run snapfusion --task fashion_t2i --set snapfusion.params=0.5 --set
snapfusion.judged=2 --set snapfusion.robust_steps=40 --set snapfusion.between_steps=4 --set
snapfusion.block_steps=100`. It is a row of `python -m methods standard --task fashion_t2i`, whose
records hold its time, machine, cost and scores with their spread. The table asks for parameters, as
other methods that take blocks do, though whole blocks may overshoot; the paper asks for a latency
and for fewer steps: `--set snapfusion.latency=0.7 --set snapfusion.steps=8` in place of `params`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .harness.block_costs import BlockCosts, Clock, block_costs
from .harness.calibration import calibration
from .harness.decoder import distil_decoder, latents, pruned_decoder
from .harness.denoise import predict
from .harness.depth import Unit, bypassed, drop, removable, repeat, repeatable, requested, units
from .harness.judge import Judge
from .harness.pipeline import NoisedBatch, Notes, Pipeline, Task, seeded
from .harness.step_distill import StepDistillation, halvings, rungs
from .harness.train import Objective, Recipe, denoising_loss, retrain

CARD = {
    "paper": "snapfusion",
    "granularity": "structured",
    "unit": "block, channel, timestep",
    "role": "method",
    "tasks": ["fashion_dit", "fashion_t2i"],
    "try": (
        "snapfusion.params=0.5",
        "snapfusion.judged=2",
        "snapfusion.robust_steps=40",
        "snapfusion.between_steps=4",
        "snapfusion.block_steps=100",
    ),
}


@dataclass(frozen=True)
class Config:
    """Every stage can be left out; budgets are small fractions of the paper's."""

    latency: float | None = None  # of the given denoiser's that may be left; none: keep blocks
    params: float | None = None  # a target in parameters instead, for tables of equal size
    clock: Clock = "measured"  # what a block costs
    skip: float = 0.15  # probability that a block is left out in robust training; not published
    robust_steps: int = 100  # optimizer steps before the first removal
    group: int = 1  # blocks removed at a time
    additions: int = 0  # blocks repeated where latency is to spare, at most
    between_steps: int = 20  # robust optimizer steps after every change
    block_steps: int | None = None  # of both in all, the rest being plain training; none: no rest
    batch_size: int = 32
    learning_rate: float = 2e-4
    judged: int = 4  # batches of fixed requests and noise that quality is measured on
    decoder_ratio: float = 0.0  # channels of the decoder removed; the paper: 0.5
    decoder_steps: int = 100  # optimizer steps of its distillation
    decoder_rate: float = 1e-3  # learning rate of its distillation
    decoder_sampling: int = 8  # sampling steps of the latents it learns from; the paper: 50
    steps: int | None = None  # sampling steps after distillation; none: leave them
    from_steps: int = 16  # sampling steps that the first teacher takes
    distill_steps: int = 150  # optimizer steps for every halving
    teacher: Literal["dense", "student"] = "dense"  # who teaches the next halving; the paper: dense
    probability: float = 0.1  # of the guided loss, p (Fig. 7)
    original: float = 0.2  # weight of the denoising loss, gamma (Fig. 7)
    w_low: float = 2.0
    w_high: float = 14.0
    precision: Literal["bf16", "fp32"] = "bf16"  # autocast dtype of all training


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """The stages that are asked for, in the paper's order.

    Raises:
        ValueError: nothing is asked for, a target cannot be met, or the pipeline lacks a part.
    """
    _check(pipe, config)
    notes: Notes = {}
    training = Training(task, config)
    if config.latency is not None or config.params is not None:
        pipe, notes["blocks"] = evolve(pipe, task, config, training)
    if config.decoder_ratio:
        pipe, notes["decoder"] = prune_decoder(pipe, task, config)
    if config.steps is not None:
        pipe, notes["distilled"] = distil_steps(pipe, task, config, training)
    pipe.denoiser.eval()
    return pipe, notes


def _check(pipe: Pipeline, config: Config) -> None:
    """Refuse what training would only find out at its end."""
    asked = (config.latency, config.params, config.steps) != (None, None, None)
    if not (asked or config.decoder_ratio):
        raise ValueError("nothing is asked for: set latency or params, decoder_ratio, or steps")
    if config.additions and config.latency is None:
        raise ValueError("additions are paid for in latency: set latency")
    if config.params is not None:
        requested(pipe.denoiser, removable(pipe.denoiser), config.params, None)
    if config.block_steps is not None and config.block_steps < config.robust_steps:
        raise ValueError(_too_few(config.block_steps, config.robust_steps))
    if config.decoder_ratio and pipe.autoencoder is None:
        raise ValueError("decoder_ratio: the pipeline has no autoencoder")
    if config.steps is not None:
        for steps in _stages(config.from_steps, config.steps):
            rungs(pipe.scheduler, steps)


def _too_few(steps: int, robust: int) -> str:
    return (
        f"block_steps={steps} are too few: robust training takes {robust}; lower robust_steps or "
        "between_steps"
    )


@dataclass
class Training:
    """Optimizer steps on the task's batches; every stage goes on where the last one stopped."""

    task: Task
    config: Config
    done: int = 0

    def __call__(self, model: nn.Module, objective: Objective, steps: int) -> list[float]:
        """Train in place for `steps` optimizer steps and return the losses."""
        if not steps:
            return []
        config = self.config
        recipe = Recipe.short(steps, config.batch_size, config.learning_rate, config.precision)
        batches = self.task.training_batches(config.batch_size, self.done)
        self.done += steps
        return retrain(model, batches, recipe, objective)

    def robust(self, model: nn.Module, steps: int) -> list[float]:
        """Train with blocks left out at random."""
        config = self.config
        draws = f"snapfusion/skip/after {self.done}"
        objective = RobustLoss(skippable(model), config.skip, self.task.seed, draws)
        return self(model, objective, steps)


# --- robust training -------------------------------------------------------------------------


@dataclass
class RobustLoss:
    """The denoising loss with blocks left out at random, one draw per batch (Eq. 5)."""

    names: tuple[str, ...]
    skip: float
    seed: int
    draws: str  # names the series of draws
    calls: int = 0

    def __call__(self, model: nn.Module, batch: NoisedBatch) -> Tensor:
        with bypassed(model, self.left_out(), shortcuts=True):
            answer = predict(model, batch.x_t, batch.t, batch.condition).float()
        return (answer - batch.target).square().mean()

    def left_out(self) -> list[str]:
        """The blocks that the next batch does without."""
        draw = seeded(self.seed, f"{self.draws}/{self.calls}")
        self.calls += 1
        gone = torch.rand(len(self.names), generator=draw) < self.skip
        return [name for name, out in zip(self.names, gone.tolist(), strict=True) if out]


def skippable(model: nn.Module) -> tuple[str, ...]:
    """Blocks that robust training may leave out: removable ones, and ResNets with a shortcut."""
    return tuple(
        unit.name
        for unit in units(model)
        if unit.removable
        or (
            unit.kind == "resnet"
            and getattr(model.get_submodule(unit.name), "conv_shortcut", None) is not None
        )
    )


# --- evolution -------------------------------------------------------------------------------

_ROUNDING = 1e-9  # of a sum of latency shares

Order = Callable[[Sequence[float]], Sequence[int]]  # values -> who goes first


class Quality(Protocol):
    """What evolution asks of a candidate: how bad it is; 0 is the best."""

    def error(self, model: nn.Module) -> float: ...


def lowest_first(values: Sequence[float]) -> list[int]:
    """Who goes first by value; ties to the earlier block."""
    return sorted(range(len(values)), key=lambda k: (values[k], k))


def evolve(
    pipe: Pipeline, task: Task, config: Config, training: Training
) -> tuple[Pipeline, Notes]:
    """Robust training, then Algorithm 1; the notes hold every value that decided.

    Raises:
        ValueError: the target cannot be met, or not within `block_steps`.
    """
    names = [unit.name for unit in removable(pipe.denoiser)]
    inputs = task.example_inputs(config.batch_size)
    costs = block_costs(pipe.denoiser, names, inputs, config.clock)
    least = 1 - sum(costs.blocks.values()) / costs.total
    if config.latency is not None and config.latency < least:
        raise ValueError(
            f"latency={config.latency} cannot be met: {least:.3f} is left when every removable "
            "block is gone"
        )
    training.robust(pipe.denoiser, config.robust_steps)
    pipe, notes = Evolution(config, judge_of(task, pipe, config), costs, training).run(pipe)
    if config.block_steps is not None:
        left = config.block_steps - training.done
        if left < 0:
            raise ValueError(_too_few(config.block_steps, training.done))
        training(pipe.denoiser, denoising_loss, left)
        notes["plain_steps"] = left
    return pipe, notes


def judge_of(task: Task, pipe: Pipeline, config: Config) -> Judge:
    """Quality is judged on fixed inputs, at the guidance that the pipeline samples with."""
    batches = calibration(task, config.batch_size, config.judged, "snapfusion/judge")
    weights = [pipe.guidance] * len(batches)
    return Judge.of(task.dense.denoiser, batches, weights, pipe.nothing(config.batch_size))


@dataclass
class Evolution:
    """Algorithm 1 on a model that robust training has prepared."""

    config: Config
    judge: Quality
    costs: BlockCosts
    training: Training
    order: Order = lowest_first
    removed: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    decided: list[dict[str, float | str]] = field(default_factory=list)

    def run(self, pipe: Pipeline) -> tuple[Pipeline, Notes]:
        """Remove blocks until the target is met, then repeat some if that leaves it met.

        Raises:
            ValueError: the target cannot be met.
        """
        config = self.config
        params = sum(p.numel() for p in pipe.denoiser.parameters())
        while not self._met(pipe, params):
            candidates = [unit for unit in removable(pipe.denoiser) if unit.params]
            if not candidates:
                raise ValueError(
                    "the target cannot be met: every removable block is gone, and "
                    f"{self.left:.3f} of the latency is left"
                )
            values = self.values(pipe.denoiser, candidates)
            for k in list(self.order(values))[: config.group]:
                if self._met(pipe, params):
                    break
                pipe = drop(pipe, [candidates[k].name])
                self._note(self.removed, candidates[k].name, values[k])
            self.training.robust(pipe.denoiser, config.between_steps)
        while len(self.repeated) < config.additions and (found := self._best(pipe)):
            pipe = repeat(pipe, [found[0]])
            self._note(self.repeated, *found)
            self.training.robust(pipe.denoiser, config.between_steps)
        return pipe, {
            "removed": self.removed,
            "repeated": self.repeated,
            "values": self.decided,
            "latency_share": self.costs.shares(),
        }

    def values(self, model: nn.Module, candidates: Sequence[Unit]) -> list[float]:
        """What each block gives for what it costs: (Q with - Q without) / (cost with - without).

        Q is minus the judge's error, so that low values go first, also negative ones.
        """
        whole = self.judge.error(model)
        found = []
        for unit in candidates:
            with bypassed(model, [unit.name]):
                without = self.judge.error(model)
            found.append((without - whole) / max(self._cost(unit.name), 1e-12))
        return found

    @property
    def left(self) -> float:
        """The fraction of the latency that is left, by the table."""
        changes = sum(map(self._cost, self.repeated)) - sum(map(self._cost, self.removed))
        return 1 + changes / self.costs.total

    def _best(self, pipe: Pipeline) -> tuple[str, float] | None:
        """The repeatable block of highest value whose copy leaves the target met."""
        assert self.config.latency is not None
        spare = (self.config.latency - self.left + _ROUNDING) * self.costs.total
        candidates = [u for u in repeatable(pipe.denoiser) if self._cost(u.name) <= spare]
        if not candidates:
            return None
        values = self.values(pipe.denoiser, candidates)
        best = max(range(len(values)), key=lambda k: (values[k], -k))
        return candidates[best].name, values[best]

    def _cost(self, name: str) -> float:
        """A copy costs what the block costs that it was made from."""
        while name not in self.costs.blocks and name.endswith(".second"):
            name = name.removesuffix(".second")
        return self.costs.blocks[name]

    def _met(self, pipe: Pipeline, dense_params: int) -> bool:
        config = self.config
        params = sum(p.numel() for p in pipe.denoiser.parameters()) / dense_params
        return (config.latency is None or self.left <= config.latency + _ROUNDING) and (
            config.params is None or params <= config.params
        )

    def _note(self, where: list[str], name: str, value: float) -> None:
        where.append(name)
        action = "removed" if where is self.removed else "repeated"
        self.decided.append({"block": name, "action": action, "value": value})


# --- decoder and steps -----------------------------------------------------------------------


def prune_decoder(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Cut channels of the decoder and distil it on the dense model's latents.

    Raises:
        ValueError: the pipeline has no autoencoder.
    """
    pipe, kept = pruned_decoder(pipe, config.decoder_ratio)
    drawn = latents(
        task,
        "generated",
        config.batch_size,
        config.decoder_sampling,
        config.precision,
        "snapfusion/decoder",
    )
    losses = distil_decoder(pipe, task.dense, drawn, config.decoder_steps, config.decoder_rate)
    return pipe, {"losses": losses, "keep": kept}


def distil_steps(
    pipe: Pipeline, task: Task, config: Config, training: Training
) -> tuple[Pipeline, Notes]:
    """Halve the sampling steps until `config.steps`.

    Every halving of a pruned model is taught by the dense model distilled to twice as many steps,
    as in the paper's pipeline, or by the student before.

    Raises:
        ValueError: the steps are no power-of-two fraction of `from_steps`.
    """
    assert config.steps is not None
    stages = _stages(config.from_steps, config.steps)
    teacher = task.dense.denoiser
    pruned = any(edit.get("part") != "autoencoder" for edit in pipe.edits)
    losses: dict[str, list[float]] = {}
    for steps in stages:
        start = training.done
        losses[str(steps)] = _halve(pipe.denoiser, teacher, pipe, steps, training)
        if steps == stages[-1]:
            break
        if config.teacher == "dense" and pruned:
            larger = copy.deepcopy(teacher).requires_grad_(True)
            _halve(larger, teacher, pipe, steps, replace(training, done=start))
            teacher = larger.requires_grad_(False)
        else:
            teacher = copy.deepcopy(pipe.denoiser).requires_grad_(False)
    return replace(pipe, steps=config.steps), {"losses": losses, "steps": config.steps}


def _stages(from_steps: int, steps: int) -> list[int]:
    stages = halvings(from_steps, steps)
    if not stages:
        raise ValueError(f"steps={steps} is what from_steps is already: nothing to distil")
    return stages


def _halve(
    student: nn.Module, teacher: nn.Module, pipe: Pipeline, steps: int, training: Training
) -> list[float]:
    config = training.config
    objective = StepDistillation(
        teacher,
        pipe.scheduler,
        steps,
        pipe.nothing,
        training.task.seed,
        config.probability,
        config.w_low,
        config.w_high,
        config.original,
    )
    return training(student, objective, config.distill_steps)
