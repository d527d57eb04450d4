"""Does each part of SparseDM's estimator help at equal steps?

`sparsedm` trains under 2:4 masks as published, and with one part taken away or exchanged at a time:
no decay of masked weights; no gradient for them either; the progressive schedule (6:8, 5:8, 4:8,
then 2:4) in place of the final pattern from the start; the denoising loss without the dense
teacher. All see the same batches for the same number of optimizer steps, and are measured with
their masks baked in, beside the masks of the first moment without training.

The bar follows the paper's claims: the improved straight-through estimator is what it adds to
plain masking, fixed sparsity replaced the progressive baseline of its first versions, and its code
weighs the teacher in. Fréchet distances are paired over seeds.

At this scale: the decay acts, since with it a third as many of the weights that were masked first
are kept at the end (1.4 % against 4.1 %, in every seed alike), but after 80 optimizer steps images
do not tell the parts apart: each of the three seeds has another variant in front. The authors'
configurations train for 300,000 steps and more.

Expect: `python -m methods experiment sparsedm_estimator`, 20 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from methods.harness.experiment import Column, Finding, Lab, Paired, Value, paired, verdict_of
from methods.harness.run import Bench
from methods.registry import Settings, Stage

CARD = {
    "methods": ["sparsedm"],
    "task": "fashion_unet",
    "bar": "at equal steps the published estimator gives a lower Fréchet distance than without "
    "decay, than without the dense gradient, than the progressive schedule and than the loss "
    "without a teacher, by the 95 % interval over seeds",
    "source": "SparseDM, arXiv 2404.10445, and its released training code",
}
PUBLISHED = "as published"
UNTRAINED = "masks alone"
COLUMNS = (
    Column("variant", "variant"),
    Column("seed", "seed"),
    Column("frechet", "Fréchet distance", 1),
    Column("mse_to_dense", "squared error to dense images", 5),
    Column("loss", "training loss, last tenth", 5),
    Column("came_back", "masked at first, kept at last", 4),
)


@dataclass(frozen=True)
class Config:
    """Pattern and training, equal for all variants."""

    n: int = 2  # weights kept of every run
    m: int = 4  # length of a run
    steps: int = 80  # optimizer steps
    batch_size: int = 32
    learning_rate: float = 2e-4


def investigate(lab: Lab, config: Config) -> Finding:
    """Train every variant with every seed and compare what comes out."""
    bench = lab.bench("fashion_unet")
    rows = []
    for seed in lab.seeds:
        rows += [rate(bench, seed, name, stage) for name, stage in variants(config).items()]
    return judge(rows)


def variants(config: Config) -> dict[str, Stage]:
    """What is trained, by its name in the table."""
    common: Settings = {
        "n": config.n,
        "m": config.m,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
    }
    changes: dict[str, Settings] = {
        UNTRAINED: {"steps": 0},
        PUBLISHED: {},
        "no decay": {"decay": 0.0},
        "no dense gradient": {"decay": 0.0, "dense_gradient": False},
        "progressive": {"progressive": True},
        "no teacher": {"teacher_weight": 0.0},
    }
    return {name: Stage.of("sparsedm", **(common | change)) for name, change in changes.items()}


def rate(bench: Bench, seed: int, name: str, stage: Stage) -> dict[str, Value]:
    """One variant's row."""
    pipe, _, (note, *_) = bench.compress((stage,), seed)
    _, quality = bench.quality(pipe, seed)
    losses = note["losses"]
    return {
        "variant": name,
        "seed": seed,
        "frechet": quality["frechet"],
        "mse_to_dense": quality["mse_to_dense"],
        "loss": fmean(losses[-max(1, len(losses) // 10) :]) if losses else None,
        "came_back": note["came_back"],
    }


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from the intervals of differences over seeds."""
    names = dict.fromkeys(str(row["variant"]) for row in rows)
    published = column(rows, PUBLISHED)
    found: dict[str, Paired] = {
        name: paired(published, column(rows, name))
        for name in names
        if name not in (PUBLISHED, UNTRAINED)
    }
    missed = [name for name, pair in found.items() if not pair.below]
    verdict = verdict_of(len(missed), len(found))
    gaps = "; ".join(f"{name} {pair}" for name, pair in found.items())
    untrained = fmean(column(rows, UNTRAINED))
    answer = (
        f"Fréchet distance {fmean(published):.1f} {PUBLISHED}, {untrained:.1f} with {UNTRAINED}. "
        f"{PUBLISHED.capitalize()} minus the variant: {gaps}."
    )
    return Finding(verdict, answer, COLUMNS, tuple(rows), reason(found, missed))


def reason(found: Mapping[str, Paired], missed: Sequence[str]) -> str:
    """What the intervals say where the bar was not met."""
    worse = [name for name in missed if found[name].above]
    level = [name for name in missed if not found[name].above]
    parts = []
    if worse:
        parts.append(f"surely better than as published: {', '.join(worse)}")
    if level:
        parts.append(f"the interval holds zero: {', '.join(level)}")
    return "; ".join(parts)


def column(rows: Sequence[Mapping[str, Value]], variant: str) -> list[float]:
    """A variant's Fréchet distances, in the order of the seeds."""
    return [float(row["frechet"] or 0.0) for row in rows if row["variant"] == variant]
