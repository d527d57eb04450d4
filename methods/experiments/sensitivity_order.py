"""Do measured orders of removal beat BK-SDM's list, even spacing and chance?

The trained base is cut to the size of BK-SDM-Small on it (`--set sensitivity_order.base=true`: to
that of BK-SDM-Base too): by `smaller_faster_sd`'s order, by `laptop_diff`'s choice, by BK-SDM's
fixed list, evenly spaced (`uniform_depth`) or in random order; all but the list get as many
parameters as the list leaves, or fewer. Every model is then retrained by the same distillation
(task, output and features, as BK-SDM does) for equal optimizer steps on equal batches, and sampled
from equal noise for equal requests.

The bar is that of an honest small-scale reproduction: at equal parameters and steps the order by
sensitivity has to win against all three, and LAPTOP-Diff's choice, which was published against
handcrafted removal, against the list and chance. Fréchet distances are compared on a logarithm,
agreement (garment, colour and background all as asked for) as it is, both in pairs over seeds. Of
`smaller_faster_sd` the abstract is all that is public, so the outcome is consistent with it or not,
no more.

At this scale: by distance guided sensitivity surely wins against all three and LAPTOP-Diff's choice
against both. By agreement guided sensitivity surely wins against the list and even spacing; random
sets differ too much among themselves for three of them to be told from it. LAPTOP-Diff's choice
surely loses agreement to the list: it is made on unguided answers, and agreement is that of guided
images, which may be why.

Expect: `python -m methods experiment sensitivity_order`, 39 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from methods import bk_sdm, distill, laptop_diff, smaller_faster_sd, uniform_depth
from methods.harness.depth import drop, random_set, removable, requested
from methods.harness.experiment import (
    Column,
    Finding,
    Lab,
    Paired,
    Value,
    paired,
    paired_logs,
    verdict_of,
)
from methods.harness.pipeline import Pipeline, Task
from methods.harness.run import Bench

CARD = {
    "methods": ["smaller_faster_sd", "laptop_diff", "bk_sdm", "uniform_depth"],
    "task": "fashion_t2i",
    "bar": "after equal retraining, at every size, the Fréchet distance lies below and the "
    "agreement above those of BK-SDM's list, of even spacing and of random removal for guided "
    "sensitivity, and those of the list and of random removal for LAPTOP-Diff's choice, by the "
    "95 % interval over seeds",
    "source": "OpenReview t9m14jybcI, abstract: blocks removed by an improved performance "
    "sensitivity, better than BK-SDM; LAPTOP-Diff, arXiv 2404.11098: better than handcrafted "
    "removal",
}
TASK = "fashion_t2i"
SENSITIVITY, LIST, EVEN, CHANCE = "guided sensitivity", "BK-SDM's list", "evenly spaced", "random"
LAPTOP = "LAPTOP-Diff's choice"
RIVALS = {SENSITIVITY: (LIST, EVEN, CHANCE), LAPTOP: (LIST, CHANCE)}
COLUMNS = (
    Column("size", "as BK-SDM-"),
    Column("order", "removed by"),
    Column("seed", "seed"),
    Column("params", "parameters left", 3),
    Column("frechet", "Fréchet distance", 1),
    Column("agreement", "agreement", 3),
    Column("mse", "squared error to dense images", 4),
)


@dataclass(frozen=True)
class Config:
    """How blocks are chosen, and the retraining that all get."""

    judged: int = 3  # batches that sensitivity is measured on
    judged_size: int = 32  # images in each
    base: bool = False  # BK-SDM-Base's size too
    retrain_steps: int = 80  # optimizer steps; 0: none
    batch_size: int = 32
    learning_rate: float = 2e-4


def investigate(lab: Lab, config: Config) -> Finding:
    """Cut in every order for every seed, retrain, sample."""
    rows: list[dict[str, Value]] = []
    for seed in lab.seeds:
        rows += rate(lab, lab.bench(TASK), seed, config)
    return judge(rows)


def rate(lab: Lab, bench: Bench, seed: int, config: Config) -> list[dict[str, Value]]:
    """One row for each size and order."""
    task = bench.task_at(seed)
    rows: list[dict[str, Value]] = []
    for size in ("base", "small") if config.base else ("small",):
        for order, pipe in cut(bench.dense, task, size, config).items():
            lab.report(f"seed {seed}: {order} to the size of BK-SDM-{size}")
            pipe = retrained(pipe, task, config, lab.protocol.precision)
            _, quality = bench.quality(pipe, seed)
            rows.append(
                {
                    "size": size,
                    "order": order,
                    "seed": seed,
                    "params": count(pipe) / count(bench.dense),
                    "frechet": quality["frechet"],
                    "agreement": quality["agreement"]["all"],
                    "mse": quality["mse_to_dense"],
                }
            )
    return rows


def cut(dense: Pipeline, task: Task, size: Any, config: Config) -> dict[str, Pipeline]:
    """The dense model without blocks, by order of removal; all of at most the list's size."""
    listed, _ = bk_sdm.compress(dense.private_copy(), task, bk_sdm.Config(size))
    params = count(listed) / count(dense)
    method = smaller_faster_sd.Config(judged=config.judged, batch_size=config.judged_size)
    sensible, _ = smaller_faster_sd.remove(dense.private_copy(), task, method, params)
    laptop = laptop_diff.Config(params=params, batch_size=config.judged_size)
    chosen, _ = laptop_diff.compress(dense.private_copy(), task, laptop)
    even, _ = uniform_depth.compress(dense.private_copy(), task, uniform_depth.Config(params))
    return {
        SENSITIVITY: sensible,
        LAPTOP: chosen,
        LIST: listed,
        EVEN: even,
        CHANCE: by_chance(dense.private_copy(), task, params),
    }


def by_chance(pipe: Pipeline, task: Task, params: float) -> Pipeline:
    """Remove random blocks so that at most the fraction `params` is left."""
    blocks = removable(pipe.denoiser)
    wanted = requested(pipe.denoiser, blocks, params, None)
    return drop(pipe, random_set(blocks, wanted, task.generator("sensitivity_order/chance")))


def retrained(pipe: Pipeline, task: Task, config: Config, precision: Any) -> Pipeline:
    """Distilled as BK-SDM is, in place."""
    if not config.retrain_steps:
        return pipe
    settings = distill.Config(
        steps=config.retrain_steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        precision=precision,
    )
    return distill.compress(pipe, task, settings)[0]


def count(pipe: Pipeline) -> int:
    """Parameters of the denoiser."""
    return sum(parameter.numel() for parameter in pipe.denoiser.parameters())


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from intervals of paired differences over seeds."""

    def values(size: Value, order: str, key: str) -> list[float]:
        return [float(r[key] or 0) for r in rows if (r["size"], r["order"]) == (size, order)]

    won, said = {}, []
    for size in dict.fromkeys(row["size"] for row in rows):
        for names in ((order, rival) for order, rivals in RIVALS.items() for rival in rivals):
            frechet: Paired = paired_logs(*(values(size, name, "frechet") for name in names))
            agreement: Paired = paired(*(values(size, name, "agreement") for name in names))
            pair = f"{names[0]} against {names[1]} at {size}"
            won[f"Fréchet distance, {pair}"] = frechet.below
            won[f"agreement, {pair}"] = agreement.above
            said.append(
                f"{pair}: ratio of Fréchet distances {frechet.ratio}, difference of agreement "
                f"{agreement}"
            )
    missed = [name for name, sure in won.items() if not sure]
    verdict = verdict_of(len(missed), len(won))
    why = f"the interval does not exclude a tie or loss: {'; '.join(missed)}" if missed else ""
    return Finding(verdict, f"{'; '.join(said)}.", COLUMNS, tuple(rows), why)
