"""Do a pruned model, low precision and fewer steps add up? Every combination on one base.

The error of a combination is the mean squared difference of its images to those of the dense model
in fp32 with the most DDIM steps, from the same noise. Independent errors add in this measure, so
each combination is held against the sum of the errors of its parts alone, by intervals that hold
for all combinations together (Bonferroni). It is flagged where it surely errs more than the sum,
and where it cannot be ruled out that it errs more than a tenth above it: few images make every
interval wide, and a wide interval is no evidence that errors add up.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from kb.results import CONFIDENCE, paired_interval
from methods import registry

from . import measure, metrics
from .alignment import agreement
from .experiment import Column, Finding, Lab, Value, verdict_of
from .features import lite0_features
from .pipeline import Pipeline
from .run import Bench
from .sample import DTYPES, sample

SAMPLERS = ("ddim", "dpm++")
PRECISIONS = ("fp32", "bf16", "int8")
MODELS = ("dense", "pruned", "distilled")
SURELY, PERHAPS = "surely more than the sum", "perhaps more than a tenth above it"
_NAME = "stacking"
_MARGIN = 0.1  # of the sum of its parts that a combination may err above it
_TINY = 1e-12  # in place of a sum that is zero
_SHOWN = 3  # combinations that a reason names
_FARTHER, _LESS_ASKED = 0.05, 0.02  # what still counts as about as good
_THREADS = 4  # for int8, whose kernels are on the CPU only


def int8(pipe: Pipeline) -> Pipeline:
    """The pipeline on the CPU, its linear layers in dynamic int8; convolutions stay fp32.

    Weights are quantized once, activations at every call (torch's own quantize_dynamic).
    """
    quantized = pipe.private_copy().to("cpu")
    with warnings.catch_warnings():
        # torch announces that torchao takes this over.
        warnings.filterwarnings("ignore", message="(?s).*(torchao|quantized tensor creation)")
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.ao.quantization.quantize_dynamic(
            quantized.denoiser.float().eval(), {nn.Linear}, dtype=torch.qint8
        )
    return replace(quantized, denoiser=model)


def quantized_bytes(model: nn.Module) -> int:
    """Bytes of a checkpoint of a model with int8 layers: packed weights, scales and the rest."""
    total = 0
    for value in model.state_dict().values():
        parts = value if isinstance(value, tuple) else (value,)
        for tensor in parts:
            if isinstance(tensor, Tensor):
                total += tensor.numel() * tensor.element_size()
                if tensor.is_quantized and tensor.qscheme() == torch.per_channel_affine:
                    total += 16 * len(tensor.q_per_channel_scales())
    return total


def schedule(pipe: Pipeline, sampler: str) -> Any:
    """The scheduler of a sampler by the base's own noise levels."""
    if sampler == "ddim":
        return DDIMScheduler.from_config(pipe.scheduler.config)
    return DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, algorithm_type="dpmsolver++", solver_order=2
    )


def draw(pipe: Pipeline, precision: str, sampler: str, steps: int, noise: Tensor, rows: Any) -> Any:
    """Images of one combination; `pipe` is quantized already where precision is int8."""
    on_cpu = precision == "int8"
    return sample(
        pipe,
        noise,
        steps,
        rows=rows,
        scheduler=schedule(pipe, sampler),
        batch_size=50 if pipe.device.type == "cpu" else 500,
        precision="fp32" if on_cpu else precision,  # type: ignore[arg-type]
        threads=min(_THREADS, torch.get_num_threads()) if on_cpu else None,
    )


def errors(images: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference of every image, (N,)."""
    return (images - reference).square().flatten(1).mean(dim=1)


def excess(
    cells: Mapping[tuple[str, str, str, int], Tensor], key: tuple[str, str, str, int], most: int
) -> tuple[float, float, tuple[float, float] | None]:
    """(error, sum of the parts' errors, interval of the difference over images).

    The interval is one of as many as there are combinations of parts in `cells`; all of them
    together hold with 95 %. `cells` maps a combination to its images' errors (N,). Parts are the
    model alone, the precision alone, and the sampler with its steps alone, all else as in the
    reference.
    """
    model, precision, sampler, steps = key
    parts = {
        (model, "fp32", "ddim", most),
        ("dense", precision, "ddim", most),
        ("dense", "fp32", sampler, steps),
    } - {("dense", "fp32", "ddim", most)}
    alone = sum((cells[part] for part in parts), torch.zeros_like(cells[key]))
    difference = (cells[key] - alone).tolist()
    mixed = sum(_changed(cell, most) > 1 for cell in cells)
    interval = None
    if len(parts) > 1 and len(difference) > 1:
        interval = paired_interval(difference, 1 - (1 - CONFIDENCE) / mixed)
    return float(cells[key].mean()), float(alone.mean()), interval


def flag(alone: float, interval: tuple[float, float] | None) -> str:
    """What the interval of error minus sum says against additivity; "" where it says nothing.

    A combination of fewer than two parts has no interval.
    """
    if interval is None:
        return ""
    if interval[0] > 0:
        return SURELY
    return PERHAPS if interval[1] > _MARGIN * alone else ""


def _changed(cell: tuple[str, str, str, int], most: int) -> int:
    """How many of the three parts differ from the reference."""
    model, precision, sampler, steps = cell
    return (model != "dense") + (precision != "fp32") + ((sampler, steps) != ("ddim", most))


def laptop_diff_recipes(
    params: float, distill_steps: int, distill_batch: int
) -> dict[str, registry.Recipe]:
    """The pruned and the distilled model: the fraction `params` left, that many optimizer steps."""
    pruned = registry.Stage.of("laptop_diff", params=params)
    distilled = registry.Stage.of("distill", steps=distill_steps, batch_size=distill_batch)
    return {"pruned": (pruned,), "distilled": (pruned, distilled)}


def investigate(
    lab: Lab,
    task: str,
    recipes: Mapping[str, registry.Recipe],
    steps: Sequence[int],
    images: int,
) -> Finding:
    """Draw and compare every combination; the first seed gives noise, requests and retraining.

    Raises:
        ValueError: `recipes` does not name a pruned and a distilled model, or there are fewer than
            two images, over which intervals could be taken.
    """
    if images < 2:
        raise ValueError(f"images={images}: intervals over images take at least two")
    if set(recipes) != set(MODELS) - {"dense"}:
        raise ValueError(f"stacking compares {', '.join(MODELS)}, not {', '.join(recipes)}")
    bench, seed = lab.bench(task), lab.seeds[0]
    around = bench.task_at(seed)
    noise, rows = around.noise(images, _NAME), around.prompts(images, _NAME)
    pipes = {"dense": bench.dense}
    for name, recipe in recipes.items():
        pipes[name] = bench.compress(recipe, seed)[0]
    most = max(steps)
    drawn: dict[tuple[str, str, str, int], Tensor] = {}
    bytes_, calls = _costs(bench, pipes)
    for name, pipe in pipes.items():
        small = int8(pipe)
        for precision, sampler, count in product(PRECISIONS, SAMPLERS, steps):
            lab.report(f"{task}: {name}, {precision}, {sampler}, {count} steps")
            used = small if precision == "int8" else pipe
            drawn[name, precision, sampler, count] = draw(
                used, precision, sampler, count, noise, rows
            )
    reference = drawn["dense", "fp32", "ddim", most]
    off = {key: errors(found, reference) for key, found in drawn.items()}
    found = []
    slowest = most * calls["dense", "fp32"]
    for key, pictures in drawn.items():
        error, alone, interval = excess(off, key, most)
        features = lite0_features(pictures, device=lab.device)
        asked = bench.classifier is not None and rows is not None
        share = agreement(bench.classifier, pictures, rows) if asked else {}  # type: ignore[arg-type]
        row: dict[str, Value] = dict(
            zip(("model", "precision", "sampler", "steps"), key, strict=True)
        )
        row["frechet"] = metrics.frechet_distance(
            metrics.feature_stats(features.to(lab.device)), bench.reference_stats
        )
        row["agreement"] = share.get("all", share.get("class"))
        row["error"] = error
        row["alone"] = alone
        row["most"] = None if interval is None else 1 + interval[1] / max(alone, _TINY)
        row["more"] = flag(alone, interval)
        row["speedup"] = slowest / (key[3] * calls[key[:2]])
        row["bytes"] = bytes_[key[:2]] / 1e6
        found.append(row)
    return _finding(found, most)


def _costs(
    bench: Bench, pipes: Mapping[str, Pipeline]
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], float]]:
    """Weight bytes, and seconds of one denoiser call on one CPU thread, by model and precision."""
    inputs = bench.task_at(0).example_inputs(bench.protocol.latency_batch, "cpu")
    sizes: dict[tuple[str, str], int] = {}
    calls: dict[str, Callable[[], object]] = {}

    def call(model: nn.Module, dtype: torch.dtype) -> Callable[[], object]:
        ready = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}

        def forward() -> None:
            with torch.inference_mode():
                model(**ready)

        return forward

    for name, pipe in pipes.items():
        for precision in PRECISIONS:
            if precision == "int8":
                model = int8(pipe).denoiser
                sizes[name, precision] = quantized_bytes(model)
            else:
                model = copy.deepcopy(pipe.denoiser).cpu().eval().requires_grad_(False)
                nn.Module.to(model, dtype=DTYPES[precision])
                sizes[name, precision] = measure.weight_bytes(model)
            calls[f"{name}/{precision}"] = call(model, DTYPES.get(precision, torch.float32))
    timed = measure.interleaved(calls, rounds=bench.protocol.latency_rounds, threads=1)
    return sizes, {
        (key.split("/")[0], key.split("/")[1]): timing.cpu.median for key, timing in timed.items()
    }


def _finding(rows: Sequence[dict[str, Any]], most: int) -> Finding:
    keys = ("model", "precision", "sampler", "steps")
    changed = [_changed(tuple(row[key] for key in keys), most) for row in rows]
    mixed = [row for row, parts in zip(rows, changed, strict=True) if parts > 1]
    start = rows[changed.index(0)]
    sure = sum(row["more"] == SURELY for row in mixed)
    open_ = [row for row in mixed if row["most"] > 1 + _MARGIN]
    worst = max(mixed, key=_of_sum)
    answer = (
        f"Of {len(mixed)} combinations {len(mixed) - len(open_)} surely err at most a tenth more "
        f"than the sum of their parts, {sure} surely more than the sum. On average a combination "
        f"errs {fmean(map(_of_sum, mixed)):.2f} times that sum, at most {_of_sum(worst):.2f} times "
        f"({_named(worst)}); these are estimates, of which the intervals say how good they are."
    )
    near = [row for row in rows if _near(row, start)]
    best = max(near, key=lambda row: row["speedup"])
    limits = f"{_FARTHER:.0%} of the Fréchet distance"
    if start["agreement"] is not None:
        limits += f" and {100 * _LESS_ASKED:.0f} points of agreement"
    answer += (
        f" The fastest whose figures on these images stay within {limits} of the dense model in "
        f"fp32 with {most} steps is {_named(best)}: {best['speedup']:.1f} times faster by the "
        f"denoiser's CPU time, {best['bytes']:.1f} in place of {start['bytes']:.1f} MB of weights."
    )
    why = ""
    if open_:
        widest = sorted(open_, key=lambda row: row["most"], reverse=True)[:_SHOWN]
        named = "; ".join(f"{_named(row)}: up to {row['most']:.2f} times" for row in widest)
        why = f"not ruled out for {len(open_)} of {len(mixed)} combinations, widest for {named}"
    columns = (
        Column("model", "model"),
        Column("precision", "precision"),
        Column("sampler", "sampler"),
        Column("steps", "steps"),
        Column("frechet", "Fréchet ↓", 0),
        Column("agreement", "as asked ↑", 3),
        Column("error", "MSE to dense ↓", 4),
        Column("alone", "sum of parts", 4),
        Column("most", "at most, of the sum", 2),
        Column("more", "flag"),
        Column("speedup", "denoiser speed-up (CPU)", 1),
        Column("bytes", "denoiser MB", 2),
    )
    verdict = verdict_of(len(open_), len(mixed))
    return Finding(verdict, answer, columns, tuple(rows), why)


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['model']}, {row['precision']}, {row['sampler']} with {row['steps']} steps"


def _of_sum(row: Mapping[str, Any]) -> float:
    return float(row["error"] / max(row["alone"], _TINY))


def _near(row: Mapping[str, Any], start: Mapping[str, Any]) -> bool:
    """Is this about as good as the reference, by the figures of the images alone?"""
    if row["frechet"] > (1 + _FARTHER) * start["frechet"]:
        return False
    return start["agreement"] is None or row["agreement"] >= start["agreement"] - _LESS_ASKED
