"""Do inputs and second order choose better weights to zero than magnitude, in diffusion models too?

Half of the inner weights go, unstructured and 2:4, by `magnitude`, `wanda` (magnitude times the
norm of its input) and `sparsegpt` (second order, with compensation), all in one shot from the same
calibration images. Judged are the layers, by the mean over layers of the relative squared error of
their output on dense inputs from images that were not calibrated on, and the images, by the Fréchet
distance. In 2:4, two ways of training on are compared as well, over equal optimizer steps and
batches: `sparsedm`, whose masks follow the weights, and `finetune` under the masks of the first
moment. Each trains as its own file says, so more differs than the masks: `sparsedm` has the betas
0.99 and 0.999, weight decay and a teacher of its authors, `finetune` 0.9 and 0.99 and neither.

On language models the order is sparsegpt, wanda, magnitude. The bar asks for it here, in both
patterns and on both bases, and for sparsedm to beat fixed masks. Errors and distances are compared
on a logarithm and paired over seeds.

At this scale: `sparsedm` trails fixed masks. It moves its masks while it trains, for 50 optimizer
steps, and its first beta averages gradients over about a hundred. Which of the two costs it more
was not measured.

Expect: `python -m methods experiment sparse_order`, 36 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.harness.calibration import observe
from methods.harness.experiment import Column, Finding, Lab, Paired, Value, paired_logs, verdict_of
from methods.harness.masks import Layer, sparse_layers
from methods.harness.pipeline import Task
from methods.harness.run import Bench
from methods.registry import Recipe, Stage

CARD = {
    "methods": ["magnitude", "wanda", "sparsegpt", "sparsedm", "finetune"],
    "task": None,
    "bar": "in both patterns and on both bases sparsegpt errs less than wanda and wanda less than "
    "magnitude, in the layers' outputs and in Fréchet distance, and sparsedm beats fine-tuning "
    "under fixed 2:4 masks, by the 95 % interval over seeds",
    "source": "SparseGPT, arXiv 2301.00774; Wanda, arXiv 2306.11695; SparseDM, arXiv 2404.10445",
}
TASKS = ("fashion_unet", "fashion_dit")
PATTERNS = ("unstructured", "2:4")
ORDER = ("sparsegpt", "wanda", "magnitude")  # the better one first
FOLLOWING, FIXED = "sparsedm, trained", "magnitude, trained"
COLUMNS = (
    Column("task", "base"),
    Column("pattern", "pattern"),
    Column("method", "method"),
    Column("seed", "seed"),
    Column("layer_error", "relative error of layers", 4),
    Column("frechet", "Fréchet distance", 1),
)


@dataclass(frozen=True)
class Config:
    """Calibration, and the length of training; equal for all methods."""

    ratio: float = 0.5  # weights zeroed, unstructured; 2:4 zeroes half anyway
    batch_size: int = 32  # calibration images
    timesteps: int = 4  # random noise levels that each image is seen at
    held_out: int = 16  # images that layers are judged on, at as many levels
    finetune_steps: int = 50  # optimizer steps of both ways to train on
    finetune_batch: int = 64


def investigate(lab: Lab, config: Config) -> Finding:
    """Prune both bases in both patterns, with every seed, and compare."""
    rows = []
    for task in TASKS:
        bench = lab.bench(task)
        for seed in lab.seeds:
            for (pattern, method), recipe in recipes(config).items():
                rows.append(rate(bench, seed, pattern, method, recipe, config))
    return judge(rows)


def recipes(config: Config) -> dict[tuple[str, str], Recipe]:
    """What is run, by pattern and name in the table."""
    data = {"batch_size": config.batch_size, "timesteps": config.timesteps}
    training = {"steps": config.finetune_steps, "batch_size": config.finetune_batch}
    halves = Stage.of("sparsedm", steps=0)  # no step: the smallest two of four, by magnitude
    free = {
        "magnitude": Stage.of("magnitude", unit="weight", ratio=config.ratio),
        "wanda": Stage.of("wanda", ratio=config.ratio, **data),
        "sparsegpt": Stage.of("sparsegpt", ratio=config.ratio, **data),
    }
    runs = {
        "magnitude": halves,
        "wanda": Stage.of("wanda", pattern="n:m", **data),
        "sparsegpt": Stage.of("sparsegpt", pattern="n:m", **data),
    }
    found: dict[tuple[str, str], Recipe] = {
        **{("unstructured", name): (stage,) for name, stage in free.items()},
        **{("2:4", name): (stage,) for name, stage in runs.items()},
        ("2:4", FIXED): (halves, Stage.of("finetune", **training)),
        ("2:4", FOLLOWING): (Stage.of("sparsedm", **training),),
    }
    return found


def rate(
    bench: Bench, seed: int, pattern: str, method: str, recipe: Recipe, config: Config
) -> dict[str, Value]:
    """One recipe's row."""
    pipe, _, _ = bench.compress(recipe, seed)
    _, quality = bench.quality(pipe, seed)
    error = layer_error(
        bench.dense.denoiser,
        pipe.denoiser,
        bench.task_at(seed),
        config.held_out,
        config.timesteps,
    )
    return {
        "task": bench.task,
        "pattern": pattern,
        "method": method,
        "seed": seed,
        "layer_error": None if method in (FOLLOWING, FIXED) else error,
        "frechet": quality["frechet"],
    }


@torch.no_grad()
def layer_error(
    dense: nn.Module, sparse: nn.Module, task: Task, images: int, timesteps: int
) -> float:
    """Mean over layers of |y' - y|^2 / |y|^2, y without bias, both from the dense model's inputs.

    The images come from the training split, which no method calibrates on.
    """
    layers = sparse_layers(dense)
    others = sparse_layers(sparse)
    lost = {name: torch.zeros((), device=task.device) for name in layers}
    whole = {name: torch.zeros((), device=task.device) for name in layers}

    def see(name: str, x: Tensor) -> None:
        y = product(layers[name], x, layers[name].weight)
        lost[name] += (product(layers[name], x, others[name].weight) - y).square().sum()
        whole[name] += y.square().sum()

    batches = list(islice(task.training_batches(images), timesteps))
    observe(dense.eval(), batches, layers, see)
    ratios = [lost[name] / whole[name] for name in layers if float(whole[name]) > 0]
    return float(torch.stack(ratios).mean())


def product(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """What the layer would give with this weight and no bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    return layer._conv_forward(x, weight, None)


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from the intervals of log ratios over seeds."""
    found: dict[str, Paired] = {}
    for task, pattern in dict.fromkeys((row["task"], row["pattern"]) for row in rows):
        here = [row for row in rows if (row["task"], row["pattern"]) == (task, pattern)]
        pairs = [
            (key, label, better, worse)
            for key, label in (("layer_error", "layer error"), ("frechet", "Fréchet distance"))
            for better, worse in pairwise(ORDER)
        ]
        if any(row["method"] == FOLLOWING for row in here):
            pairs.append(("frechet", "Fréchet distance", FOLLOWING, FIXED))
        for key, label, better, worse in pairs:
            name = f"{task}, {pattern}, {label}, {better} over {worse}"
            found[name] = paired_logs(column(here, better, key), column(here, worse, key))
    missed = [name for name, pair in found.items() if not pair.below]
    verdict = verdict_of(len(missed), len(found))
    answer = "Ratios: " + "; ".join(f"{name} {pair.ratio}" for name, pair in found.items()) + "."
    return Finding(verdict, answer, COLUMNS, tuple(rows), reason(found, missed))


def reason(found: Mapping[str, Paired], missed: Sequence[str]) -> str:
    """What the intervals say where the bar was not met."""
    worse = [name for name in missed if found[name].above]
    level = [name for name in missed if not found[name].above]
    parts = []
    if worse:
        parts.append(f"surely the other way round: {'; '.join(worse)}")
    if level:
        parts.append(f"the interval holds one: {'; '.join(level)}")
    return ". ".join(parts)


def column(rows: Sequence[Mapping[str, Value]], method: str, key: str) -> list[float]:
    """One method's figures, in the order of the seeds."""
    return [float(row[key] or 0.0) for row in rows if row["method"] == method]
