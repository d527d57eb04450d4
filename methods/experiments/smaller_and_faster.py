"""Is a model of half the parameters in 8 steps better than BK-SDM's larger one in 25?

This is the abstract's headline, asked of the reconstruction and of the shipped base: for every seed
`smaller_faster_sd` removes 46 % of the parameters, retrains and distils to 8 sampling steps, while
BK-SDM-Small's list leaves more and is trained by its own distillation for as many optimizer steps,
then sampled in 25. Requests, noise and guidance weight are the same. Two more rows say what the
parts do: the same small model retrained all the time and never distilled, and the dense model, both
in 8 steps.

Optimizer steps are equal, seconds are not: guided answers and the teacher's steps cost more. "MSE
to dense" is to the dense model's images in the protocol's own number of steps. Model, data and
budget are far from Stable Diffusion, so what holds here is consistent with the abstract at most.

At this scale: the smaller model's distance in 8 steps is two thirds of the larger one's in 25, and
its agreement the same within what three seeds can tell. What wins is the choice of blocks: without
the distillation distance and agreement are as good, and images nearer to the dense model's. In 8
steps even the undistilled dense model is close to its own images in 10 (squared error 0.0006), so
there is little for distilling steps to win.

Expect: `python -m methods experiment smaller_and_faster`, 56 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from methods.harness.alignment import overall
from methods.harness.experiment import Column, Finding, Lab, Value, Verdict, paired, paired_logs
from methods.harness.pipeline import Pipeline
from methods.harness.run import Bench
from methods.registry import Stage

CARD = {
    "methods": ["smaller_faster_sd", "bk_sdm"],
    "task": "fashion_t2i",
    "bar": "with fewer parameters and 8 sampling steps the Fréchet distance lies below, and the "
    "agreement above, that of BK-SDM-Small in 25 steps, by the 95 % interval over seeds",
    "source": "OpenReview t9m14jybcI, abstract: -46 % parameters in 8 steps, better than BK-SDM in "
    "25 and smaller",
}
TASK = "fashion_t2i"
OURS, UNDISTILLED, LIST, DENSE = "distilled", "not distilled", "BK-SDM-Small", "dense"
COLUMNS = (
    Column("model", "model"),
    Column("steps", "sampling steps"),
    Column("seed", "seed"),
    Column("params", "parameters left", 3),
    Column("frechet", "Fréchet distance", 1),
    Column("agreement", "agreement", 3),
    Column("mse", "MSE to dense", 4),
)


@dataclass(frozen=True)
class Config:
    """Sizes and steps of the abstract; budgets of a small model."""

    params: float = 0.54  # denoiser parameters left at most
    steps: int = 8  # sampling steps after distillation
    from_steps: int = 25  # sampling steps of BK-SDM, and of the teacher as nearly as they divide
    train_steps: int = 120  # optimizer steps of every student, half of them for the distillation
    judged: int = 6  # batches that blocks are chosen on, as the method has it
    batch_size: int = 32
    learning_rate: float = 2e-4


def investigate(lab: Lab, config: Config) -> Finding:
    """Make three students for every seed and sample them beside the dense model."""
    rows: list[dict[str, Value]] = []
    for seed in lab.seeds:
        rows += rate(lab, lab.bench(TASK), seed, config)
    return judge(rows)


def rate(lab: Lab, bench: Bench, seed: int, config: Config) -> list[dict[str, Value]]:
    """One row for each model and number of sampling steps."""
    lab.report(f"seed {seed}: prune and train")
    few, many = config.steps, config.from_steps
    models = {
        (OURS, few): student(lab, bench, seed, config, distilled=True),
        (UNDISTILLED, few): replace(student(lab, bench, seed, config, distilled=False), steps=few),
        (LIST, many): replace(bk_sdm_small(lab, bench, seed, config), steps=many),
        (DENSE, few): replace(bench.dense, steps=few),
    }
    rows: list[dict[str, Value]] = []
    for (name, steps), pipe in models.items():
        _, quality = bench.quality(pipe, seed)
        rows.append(
            {
                "model": name,
                "steps": steps,
                "seed": seed,
                "params": _params(pipe) / _params(bench.dense),
                "frechet": quality["frechet"],
                "agreement": overall(quality["agreement"]),
                "mse": quality["mse_to_dense"],
            }
        )
    return rows


def student(lab: Lab, bench: Bench, seed: int, config: Config, *, distilled: bool) -> Pipeline:
    """`smaller_faster_sd` with its training in two halves, or all of it before the distillation."""
    half = config.train_steps // 2
    # Two stages, so that both students come from one removal.
    removal = Stage.of(
        "smaller_faster_sd",
        params=config.params,
        judged=config.judged,
        batch_size=config.batch_size,
        retrain_steps=0,
    )
    training = Stage.of(
        "smaller_faster_sd",
        params=None,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        precision=lab.protocol.precision,
        retrain_steps=config.train_steps - half if distilled else config.train_steps,
        distill_steps=half,
        steps=config.steps if distilled else None,
        from_steps=config.from_steps,
    )
    return bench.compress((removal, training), seed)[0]


def bk_sdm_small(lab: Lab, bench: Bench, seed: int, config: Config) -> Pipeline:
    """BK-SDM-Small's list, trained as BK-SDM trains."""
    training = Stage.of(
        "distill",
        steps=config.train_steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        precision=lab.protocol.precision,
    )
    return bench.compress((Stage.of("bk_sdm", size="small"), training), seed)[0]


def _params(pipe: Pipeline) -> int:
    return sum(parameter.numel() for parameter in pipe.denoiser.parameters())


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from intervals of paired differences over seeds."""

    def values(model: str, key: str) -> list[float]:
        return [float(row[key] or 0.0) for row in rows if row["model"] == model]

    distance = paired_logs(values(OURS, "frechet"), values(LIST, "frechet"))
    agreement = paired(values(OURS, "agreement"), values(LIST, "agreement"))
    alone = paired_logs(values(OURS, "frechet"), values(UNDISTILLED, "frechet"))
    answer = (
        f"With {fmean(values(OURS, 'params')):.3f} of the parameters in few steps against "
        f"{fmean(values(LIST, 'params')):.3f} in many: Fréchet distance "
        f"{fmean(values(OURS, 'frechet')):.1f} against {fmean(values(LIST, 'frechet')):.1f}, ratio "
        f"{distance.ratio}; agreement {fmean(values(OURS, 'agreement')):.3f} against "
        f"{fmean(values(LIST, 'agreement')):.3f}, difference {agreement}. Distilled over not "
        f"distilled, in equal sampling steps: Fréchet distance {alone.ratio}."
    )
    larger = max(values(OURS, "params")) >= min(values(LIST, "params"))
    missed = [
        name
        for name, failed in (
            ("the model is not smaller than BK-SDM-Small", larger),
            ("the distance is not surely smaller", not distance.below),
            ("the agreement is not surely higher", not agreement.above),
        )
        if failed
    ]
    verdict: Verdict = "shown"
    if missed:
        verdict = "not shown" if larger or len(missed) == 2 else "in part"
    return Finding(verdict, answer, COLUMNS, tuple(rows), "; ".join(missed))
