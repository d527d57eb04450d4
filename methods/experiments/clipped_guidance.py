"""Does clipping predicted images spoil guided sampling of many steps?

diffusers' DDIM clips the predicted clean image to [-1, 1] where the scheduler says so, and steps on
with the noise of the unclipped one. Guidance predicts beyond the range, so the two disagree at
every step. The dense model is drawn with and without clipping, guided and not, from the same noise.

Expect: `python -m methods experiment clipped_guidance`, 6 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from diffusers import DDIMScheduler

from methods.harness.alignment import agreement
from methods.harness.experiment import Column, Finding, Lab, Paired, Value, paired, verdict_of
from methods.harness.sample import sample

CARD = {
    "methods": ["dense"],
    "task": "fashion_dit",
    "bar": "in the most steps, guided images show what was asked for more often unclipped, and "
    "unguided ones at most two in a hundred less often, by the 95 % interval over seeds",
    "source": "an early stacking run in which 50 guided steps looked worse than 8",
}
LOSS = 0.02  # share of unguided images that not clipping may cost
COLUMNS = (
    Column("seed", "seed"),
    Column("guidance", "w", 1),
    Column("steps", "steps"),
    Column("clipped", "as asked, clipped", 3),
    Column("free", "as asked, unclipped", 3),
)


@dataclass(frozen=True)
class Config:
    """Few images are enough: what is seen is large."""

    images: int = 100  # of every combination and seed
    most: int = 50  # sampling steps
    some: int = 20
    few: int = 8


def investigate(lab: Lab, config: Config) -> Finding:
    """Draw every combination and count what shows what was asked for."""
    bench = lab.bench("fashion_dit")
    dense, classifier = bench.dense, bench.classifier
    assert classifier is not None  # every conditional base has one
    rows: list[dict[str, Value]] = []
    for seed in lab.seeds:
        task = bench.task_at(seed)
        noise = task.noise(config.images, "clipped_guidance")
        asked = task.prompts(config.images, "clipped_guidance")
        assert asked is not None
        for w, steps in product((1.0, dense.guidance), (config.few, config.some, config.most)):
            lab.report(f"seed {seed}: w = {w:g}, {steps} steps")
            shares = {}
            for key, clip in (("clipped", True), ("free", False)):
                scheduler = DDIMScheduler.from_config(dense.scheduler.config, clip_sample=clip)
                images = sample(
                    dense,
                    noise,
                    steps,
                    rows=asked,
                    guidance=w,
                    scheduler=scheduler,
                    precision=lab.protocol.precision,  # type: ignore[arg-type]
                )
                shares[key] = agreement(classifier, images, asked)["class"]
            rows.append({"seed": seed, "guidance": w, "steps": steps, **shares})
    return judge(rows, dense.guidance, config)


def judge(rows: Sequence[Mapping[str, Value]], weight: float, config: Config) -> Finding:
    """The verdict, from intervals over seeds; `weight` is that of guidance."""

    def shares(w: float, steps: int, key: str) -> list[float]:
        own = [row for row in rows if (row["guidance"], row["steps"]) == (w, steps)]
        return [float(row[key] or 0) for row in own]

    def gain(w: float) -> Paired:
        return paired(shares(w, config.most, "free"), shares(w, config.most, "clipped"))

    guided, plain = gain(weight), gain(1.0)
    missed = []
    if not guided.above:
        missed.append("guided images are not surely more often as asked")
    if plain.low < -LOSS:
        missed.append(f"a loss of more than {LOSS:g} of the unguided ones is not ruled out")
    by_steps = "; ".join(
        f"{steps} steps: {fmean(shares(weight, steps, 'clipped')):.2f} clipped, "
        f"{fmean(shares(weight, steps, 'free')):.2f} not"
        for steps in (config.few, config.some, config.most)
    )
    answer = (
        f"Fraction of images as asked at w = {weight:g}: {by_steps}. What not clipping "
        f"adds in {config.most} steps: {guided} guided, {plain} unguided."
    )
    return Finding(verdict_of(len(missed), 2), answer, COLUMNS, tuple(rows), "; ".join(missed))
