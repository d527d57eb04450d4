"""Make a model survive missing blocks, drop those that cost most for what they give, halve steps.

Li et al., "SnapFusion: Text-to-Image Diffusion Model on Mobile Devices within Two Seconds", NeurIPS
2023, arXiv 2306.00980. No code was released; this follows the paper:

1. Robust training (Eq. 5): every ResNet and transformer block is left out with some probability,
   drawn once per batch; the loss stays the denoising loss.
2. Evolution (Alg. 1): value = (quality with - quality without) / (latency with - latency without)
   for every block; the group of lowest value goes, robust training continues, until the latency
   target is met. Latency is measured block by block, once.
3. Decoder: half of the channels of the autoencoder's decoder go, the rest learns to decode as the
   whole one did, on latents drawn by the dense model.
4. Step distillation (Eq. 6-11): `harness/step_distill.py`; one halving after the other.

Differs from the paper in: quality is minus the squared error of guided answers to the dense
model's on fixed requests and noise, since CLIP judges no garments; a ResNet that changes the width
keeps its shortcut when it is left out (identity is impossible there) and is no candidate for
removal; blocks are only removed, never added, since nothing here starts below its latency target;
robust skipping probability and iterations are not published. A base that predicts noise is sampled
as it is: conversion to v prediction is only needed where the schedule ends in pure noise.

Expect: `python -m methods run snapfusion --task fashion_t2i --set snapfusion.latency=0.7 --set
snapfusion.steps=8`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from .harness.calibration import calibration
from .harness.denoise import predict
from .harness.depth import bypassed, drop, removable, units
from .harness.judge import Judge
from .harness.measure import count_macs
from .harness.pipeline import NoisedBatch, Notes, Pipeline, Task, seeded
from .harness.scores import GroupScore, choose
from .harness.step_distill import StepDistillation, halvings
from .harness.surgery import cut_decoder, decoder_widths
from .harness.train import Recipe, retrain
from .harness.trajectory import Run, linear_steps

CARD = {
    "paper": "snapfusion",
    "granularity": "structured",
    "unit": "block, channel, timestep",
    "role": "method",
    "tasks": ["fashion_dit", "fashion_t2i"],
}


@dataclass(frozen=True)
class Config:
    """Every stage can be left out; budgets are small fractions of the paper's."""

    latency: float | None = None  # of the dense denoiser's that may stay, (0, 1]; none: keep blocks
    params: float | None = None  # a target in parameters instead, for tables of equal size
    clock: Literal["measured", "macs"] = "measured"  # what a block costs
    skip: float = 0.15  # probability that a block is left out in robust training; not published
    robust_steps: int = 100  # optimizer steps before the first removal
    group: int = 1  # blocks removed at a time
    between_steps: int = 20  # robust optimizer steps after every removal
    batch_size: int = 32
    learning_rate: float = 2e-4
    judged: int = 4  # batches of fixed requests and noise that quality is measured on
    decoder_ratio: float = 0.0  # channels of the decoder removed; the paper: 0.5
    decoder_steps: int = 100  # optimizer steps of its distillation
    steps: int | None = None  # sampling steps after distillation; none: leave them
    from_steps: int = 16  # sampling steps that the first teacher takes
    distill_steps: int = 150  # optimizer steps for every halving
    probability: float = 0.1  # of the guided loss, p (Fig. 7)
    original: float = 0.2  # weight of the denoising loss, gamma (Fig. 7)
    w_low: float = 2.0
    w_high: float = 14.0
    precision: Literal["bf16", "fp32"] = "bf16"  # autocast dtype of all training


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """The stages that are asked for, in the paper's order."""
    notes: Notes = {}
    if config.latency is not None or config.params is not None:
        pipe, notes["blocks"] = evolve(pipe, task, config)
    if config.decoder_ratio:
        pipe, notes["decoder"] = prune_decoder(pipe, task, config)
    if config.steps is not None:
        pipe, notes["distilled"] = distil_steps(pipe, task, config)
    pipe.denoiser.eval()
    return pipe, notes


# --- robust training and evolution -----------------------------------------------------------


@dataclass
class RobustLoss:
    """The denoising loss with blocks left out at random, one draw per batch (Eq. 5)."""

    names: tuple[str, ...]
    skip: float
    seed: int
    calls: int = 0

    def __call__(self, model: nn.Module, batch: NoisedBatch) -> Tensor:
        draw = seeded(self.seed, f"snapfusion/skip/{self.calls}")
        self.calls += 1
        left_out = torch.rand(len(self.names), generator=draw) < self.skip
        names = [name for name, gone in zip(self.names, left_out, strict=True) if gone]
        with bypassed(model, names, shortcuts=True):
            answer = predict(model, batch.x_t, batch.t, batch.condition).float()
        return (answer - batch.target).square().mean()


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


def robust_training(model: nn.Module, task: Task, config: Config, steps: int, name: str) -> None:
    """Train in place for `steps` optimizer steps; the task's batches, other draws for each name."""
    if not steps:
        return
    recipe = _recipe(config, steps)
    objective = RobustLoss(skippable(model), config.skip, hash_of(task.seed, name))
    retrain(model, task.training_batches(config.batch_size), recipe, objective)


def hash_of(seed: int, name: str) -> int:
    """A seed of its own for a named stage."""
    return int(torch.randint(2**31, (1,), generator=seeded(seed, name)))


def _recipe(config: Config, steps: int) -> Recipe:
    return Recipe.short(steps, config.batch_size, config.learning_rate, config.precision)


def evolve(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Algorithm 1 with removals only; the notes hold every value that decided."""
    model = pipe.denoiser
    robust_training(model, task, config, config.robust_steps, "snapfusion/robust")
    judge = judge_of(task, pipe, config)
    table = latency_table(model, task, config)
    total = table.pop("")
    dense_params = sum(p.numel() for p in model.parameters())
    left = total
    removed: list[str] = []
    decided: list[dict[str, float | str]] = []
    while not _met(config, left / total, sum(p.numel() for p in model.parameters()) / dense_params):
        candidates = [unit for unit in removable(model) if unit.params]
        if not candidates:
            raise ValueError(
                f"the target cannot be met: {left / total:.3f} of the latency is left when every "
                "removable block is gone"
            )
        full = quality(judge, model)
        values = []
        for unit in candidates:
            with bypassed(model, [unit.name]):
                values.append((full - quality(judge, model)) / max(table[unit.name], 1e-12))
        order = sorted(range(len(candidates)), key=lambda k: (values[k], k))
        for k in order[: config.group]:
            name = candidates[k].name
            pipe = drop(pipe, [name])
            left -= table[name]
            removed.append(name)
            decided.append({"block": name, "value": values[k]})
        robust_training(
            model, task, config, config.between_steps, f"snapfusion/after/{len(removed)}"
        )
    share = {name: value / total for name, value in table.items()}
    return pipe, {"removed": removed, "values": decided, "latency_share": share}


def _met(config: Config, latency: float, params: float) -> bool:
    return (config.latency is None or latency <= config.latency) and (
        config.params is None or params <= config.params
    )


def judge_of(task: Task, pipe: Pipeline, config: Config) -> Judge:
    """Quality is judged on fixed inputs, at the guidance that the pipeline samples with."""
    batches = calibration(task, config.batch_size, config.judged, "snapfusion/judge")
    weights = [pipe.guidance] * len(batches)
    return Judge.of(task.dense.denoiser, batches, weights, pipe.nothing(config.batch_size))


def quality(judge: Judge, model: nn.Module) -> float:
    """Minus the squared error of guided answers: at most 0, which is the dense model's."""
    return -judge.error(model)


def latency_table(model: nn.Module, task: Task, config: Config) -> dict[str, float]:
    """What every removable block costs, and under "" the whole denoiser: seconds, or MACs
    where the clock is "macs" and repeatability counts for more than truth."""
    names = [unit.name for unit in removable(model)]
    if config.clock == "macs":
        inputs = task.example_inputs()
        total = count_macs(model, inputs).total
        table = {"": float(total)}
        for name in names:
            with bypassed(model, [name]):
                table[name] = float(total - count_macs(model, inputs).total)
        return table
    return _timed(model, names, task.example_inputs(config.batch_size))


@torch.no_grad()
def _timed(model: nn.Module, names: Sequence[str], inputs: dict[str, Tensor]) -> dict[str, float]:
    """Seconds in every block and in all, least of interleaved rounds (processor time on a CPU)."""
    device = next(model.parameters()).device
    model.eval()
    spent: dict[str, list[float]] = {name: [] for name in ["", *names]}
    started: dict[str, float] = {}

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            return time.perf_counter()
        return time.process_time()

    def before(name: str) -> None:
        started[name] = now()

    def after(name: str) -> None:
        spent[name].append(now() - started[name])

    handles = []
    for name in names:
        layer = model.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(lambda *_, n=name: before(n)))
        handles.append(layer.register_forward_hook(lambda *_, n=name: after(n)))
    try:
        for _ in range(6):
            before("")
            model(**inputs)
            after("")
    finally:
        for handle in handles:
            handle.remove()
    return {name: min(found[1:]) for name, found in spent.items()}


# --- decoder ---------------------------------------------------------------------------------


def prune_decoder(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Cut channels of the decoder by magnitude and distil it on the dense model's latents.

    Raises:
        ValueError: the pipeline has no autoencoder.
    """
    if pipe.autoencoder is None or task.dense.autoencoder is None:
        raise ValueError("decoder_ratio: the pipeline has no decoder")
    decoder = pipe.autoencoder
    widths = decoder_widths(decoder, config.decoder_ratio)
    keep = choose(decoder, GroupScore(lambda w, _: w.square().sum(dim=1)), widths)
    pipe = cut_decoder(pipe, keep)
    decoder.decoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(decoder.decoder.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for step in range(config.decoder_steps):
        latents = generated_latents(task, config, step)
        with torch.no_grad():
            wanted = task.dense.decode(latents)
        loss = (pipe.decode(latents) - wanted).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    decoder.requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.grad = None
    return pipe, {"losses": losses, "keep": {name: len(kept) for name, kept in keep.items()}}


def generated_latents(task: Task, config: Config, step: int) -> Tensor:
    """Latents (B, C, H, W) that the dense model draws, new noise and requests every time."""
    name = f"snapfusion/decoder/{step}"
    rows = task.prompts(config.batch_size, name)
    steps = linear_steps(task.dense.scheduler, 8)
    run = Run(
        task.dense.denoiser,
        steps,
        task.dense.condition(rows),
        task.dense.nothing(config.batch_size),
        task.dense.guidance,
    )
    with torch.no_grad():
        return run.latents(task.noise(config.batch_size, name))[-1]


# --- steps -----------------------------------------------------------------------------------


def distil_steps(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Halve the sampling steps until `config.steps`; each student teaches the next.

    The first teacher is the dense model (Sec. 4.2: a larger teacher is better).

    Raises:
        ValueError: the steps are no power-of-two fraction of `from_steps`.
    """
    assert config.steps is not None
    teacher = task.dense.denoiser
    losses: dict[str, list[float]] = {}
    for steps in halvings(config.from_steps, config.steps):
        objective = StepDistillation(
            teacher,
            pipe.scheduler,
            steps,
            pipe.nothing,
            hash_of(task.seed, "snapfusion/steps"),
            config.probability,
            config.w_low,
            config.w_high,
            config.original,
        )
        batches = task.training_batches(config.batch_size)
        recipe = _recipe(config, config.distill_steps)
        losses[str(steps)] = retrain(pipe.denoiser, batches, recipe, objective)
        teacher = pipe.private_copy().denoiser.requires_grad_(False)
    return replace(pipe, steps=config.steps), {"losses": losses, "steps": config.steps}
