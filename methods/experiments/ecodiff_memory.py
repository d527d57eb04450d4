"""What do gates through a whole sampling run cost, and is the cheap gradient the right one?

For T sampling steps the gates' gradient is computed three ways: through the whole graph (naive);
with time-step checkpointing that draws the gates' noise once for each step and layer and replays it
(`ecodiff` here); and with checkpointing that draws the noise anew when a step is run again, as the
released code does. Held memory is what autograd keeps for the backward pass, in storages, the
model's own tensors aside; the T latents that checkpointing keeps are added. Memory and seconds are
in float32; errors are in float64, so that what they show is the method and not rounding. Gates are
random (delta), lambda lies where they are neither all open nor all closed.

Expect: `python -m methods experiment ecodiff_memory`, 6 minutes of one core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median

import torch
from torch import Tensor, nn

from methods.ecodiff import GateNoise
from methods.harness.experiment import Column, Finding, Lab, Value, Verdict
from methods.harness.run import Bench
from methods.harness.trajectory import (
    Gates,
    Run,
    checkpointed_backward,
    held_by_autograd,
    start,
)
from methods.harness.width import width_layers

CARD = {
    "methods": ["ecodiff"],
    "task": "fashion_dit",
    "bar": "for every seed: checkpointed gradients equal the naive ones to 1e-5 with random gates, "
    "and what autograd holds grows by less than 5 % from the second number of steps to the last",
    "source": "EcoDiff, arXiv 2412.02852, time-step gradient checkpointing; its released code "
    "draws the gates' noise again on recomputation",
}
MEBIBYTE = 2**20
COLUMNS = (
    Column("steps", "sampling steps"),
    Column("naive", "held, naive [MiB]", 2),
    Column("checkpointed", "held, checkpointed [MiB]", 2),
    Column("latents", "latents kept [MiB]", 3),
    Column("naive_seconds", "naive [s]", 3),
    Column("seconds", "checkpointed [s]", 3),
    Column("replayed", "gradient error, replayed"),
    Column("redrawn", "gradient error, redrawn", 3),
)


@dataclass(frozen=True)
class Config:
    """Numbers of steps 1, 2, 4 ... up to `most`."""

    most: int = 16  # sampling steps at most, a power of two
    batch_size: int = 4  # requests
    init: float = 1.0  # of lambda
    delta: float = 0.5  # noise of the gates, as the released code for SDXL
    repeats: int = 3  # timed runs of each kind


@dataclass(frozen=True)
class Redrawn:
    """Gates whose noise is not replayed: every call draws anew, as the released code."""

    gates: GateNoise
    asked: dict[int, int] = field(default_factory=dict)

    def __call__(self, step: int) -> Gates:
        times = self.asked[step] = self.asked.get(step, 0) + 1
        if times == 1:  # the forward pass: the same gates, so the same loss
            return self.gates(step)
        return replace(self.gates, name=f"{self.gates.name}/draw {times}")(step)


def investigate(lab: Lab, config: Config) -> Finding:
    """Measure every number of steps; errors for every seed, memory and time for the first."""
    bench = lab.bench("fashion_dit")
    counts = [2**power for power in range(config.most.bit_length()) if 2**power <= config.most]
    rows, errors = [], []
    for steps in counts:
        lab.report(f"{steps} sampling steps")
        found = [gradient_errors(bench, seed, steps, config) for seed in lab.seeds]
        errors += [replayed for replayed, _ in found]
        rows.append(
            costs(bench, lab.seeds[0], steps, config)
            | {
                "steps": steps,
                "replayed": f"{max(replayed for replayed, _ in found):.1e}",
                "redrawn": fmean(redrawn for _, redrawn in found),
            }
        )
    return judge(rows, max(errors))


def setting(
    bench: Bench, seed: int, steps: int, config: Config, dtype: torch.dtype
) -> tuple[Run, Tensor, Tensor, dict[str, Tensor], GateNoise]:
    """(run, start, target, lambda, gates) in one precision."""
    pipe = bench.dense.private_copy()
    pipe.denoiser.eval().requires_grad_(False)
    run, x = start(pipe, bench.task_at(seed), steps, config.batch_size, "ecodiff/memory")
    run = replace(
        run,
        model=nn.Module.to(run.model, dtype=dtype),  # the one of diffusers warns about casts
        condition=cast(run.condition, dtype),
        null=cast(run.null, dtype),
    )
    x = x.to(dtype)
    with torch.no_grad():
        target = run.latents(x)[-1]
    lambdas = {
        layer.name: torch.full(
            (layer.units,), config.init, device=x.device, dtype=dtype, requires_grad=True
        )
        for layer in width_layers(run.model)
    }
    return run, x, target, lambdas, GateNoise(lambdas, config.delta, seed, "ecodiff/memory")


def cast(condition: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in condition.items()}


def gradient_errors(bench: Bench, seed: int, steps: int, config: Config) -> tuple[float, float]:
    """Relative error of all gradients together: with the noise replayed, and drawn anew."""
    run, x, target, lambdas, gates = setting(bench, seed, steps, config, torch.float64)
    layers = width_layers(run.model)

    def loss(z: Tensor) -> Tensor:
        return (z - target).square().mean()

    def gradient(backward: Callable[[], object]) -> Tensor:
        for values in lambdas.values():
            values.grad = None
        backward()
        return torch.cat([values.grad.flatten() for values in lambdas.values()])  # type: ignore[union-attr]

    naive = gradient(lambda: loss(run.latents(x, layers, gates)[-1]).backward())
    replayed = gradient(lambda: checkpointed_backward(run, x, layers, gates, loss))
    redrawn = gradient(lambda: checkpointed_backward(run, x, layers, Redrawn(gates), loss))
    return relative(replayed, naive), relative(redrawn, naive)


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    return float((found - expected).norm() / expected.norm())


def costs(bench: Bench, seed: int, steps: int, config: Config) -> dict[str, Value]:
    """Held memory and seconds of the naive and of the checkpointed gradient, in float32."""
    run, x, target, _, gates = setting(bench, seed, steps, config, torch.float32)
    layers = width_layers(run.model)

    def loss(z: Tensor) -> Tensor:
        return (z - target).square().mean()

    def naive() -> None:
        loss(run.latents(x, layers, gates)[-1]).backward()

    def checkpointed() -> None:
        checkpointed_backward(run, x, layers, gates, loss)

    found: dict[str, Value] = {}
    for name, backward in (("naive", naive), ("checkpointed", checkpointed)):
        with held_by_autograd(run.model) as held:
            backward()
        found[name] = held.most / MEBIBYTE
        key = "naive_seconds" if name == "naive" else "seconds"
        found[key] = median(seconds(backward, x.device) for _ in range(config.repeats))
    found["latents"] = (steps + 1) * x.numel() * x.element_size() / MEBIBYTE
    return found


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """Wall time, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def judge(rows: Sequence[Mapping[str, Value]], error: float) -> Finding:
    """The verdict; `error` is the largest of all seeds and numbers of steps, replayed."""
    held = [float(row["checkpointed"] or 0.0) for row in rows]
    naive = [float(row["naive"] or 0.0) for row in rows]
    steps = [row["steps"] for row in rows]
    second = min(1, len(rows) - 1)
    growth = held[-1] / held[second] - 1
    exact, flat = error <= 1e-5, growth < 0.05
    verdict: Verdict = "shown" if exact and flat else "in part" if exact or flat else "not shown"
    redrawn = [f"{float(row['redrawn'] or 0.0):.2g} at {row['steps']}" for row in rows]
    answer = (
        f"From {steps[second]} to {steps[-1]} steps autograd holds {100 * growth:+.1f} % with "
        f"checkpointing and {naive[-1] / naive[second]:.1f} times as much without; with the noise "
        f"replayed the gradient is off by {error:.1e} at most, with the noise drawn anew by "
        f"{', '.join(redrawn)} steps."
    )
    missed = [] if exact else ["replayed gradients are off by more than 1e-5"]
    missed += [] if flat else ["held memory grows by 5 % or more"]
    return Finding(verdict, answer, COLUMNS, tuple(rows), "; ".join(missed))
