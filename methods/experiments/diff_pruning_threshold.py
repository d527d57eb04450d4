"""Does it help to leave the noisiest timesteps out of the Taylor score?

`diff_pruning` at one size with several thresholds, and `taylor` over all timesteps; each is
measured as it is and after the same retraining. Threshold 0 takes all timesteps too: it differs
from `taylor` in the score (|w g| added up instead of signs that cancel) and in the noise, which
each method draws for itself; from the other thresholds in the timesteps alone. Overlap is the
fraction of kept channels that are those of threshold 0.

The bar is the order that the paper reports at one size and one retraining: FID 5.29 at threshold
0.05, 5.44 at 0.02, 5.49 at 0 and 5.56 for Taylor on CIFAR-10. Differences are paired over seeds:
same calibration images, same retraining batches, same sampling noise.

At this scale: the paper's gaps are 3 to 5 % of its FID after 100,000 optimizer steps, with 50,000
samples. Three seeds of 500 samples after 100 steps cannot tell so little.

Expect: `python -m methods experiment diff_pruning_threshold`, 27 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from methods.harness.channels import channel_groups
from methods.harness.experiment import Column, Finding, Lab, Paired, Value, paired, verdict_of
from methods.harness.pipeline import Notes
from methods.harness.run import Bench
from methods.harness.scores import chance_overlap, overlap
from methods.registry import Stage

CARD = {
    "methods": ["diff_pruning", "taylor"],
    "task": "fashion_unet",
    "bar": "after equal retraining, threshold 0.05 gives a lower Fréchet distance than threshold 0 "
    "and than taylor, by the 95 % interval over seeds",
    "source": "Diff-Pruning, arXiv 2305.10924, CIFAR-10 results at equal size and retraining",
}
THRESHOLDS = (0.0, 0.02, 0.05, 0.2)
JUDGED = "threshold 0.05"
RIVALS = ("threshold 0", "taylor")
COLUMNS = (
    Column("criterion", "criterion"),
    Column("seed", "seed"),
    Column("stop", "last timestep used"),
    Column("overlap", "channels kept as at threshold 0", 3),
    Column("chance", "by chance", 3),
    Column("frechet", "Fréchet distance, not retrained", 1),
    Column("retrained", "retrained", 1),
)


@dataclass(frozen=True)
class Config:
    """Size, calibration and retraining, those of the standard comparison; equal for all."""

    macs: float = 0.5  # convolution and linear MACs left, (0, 1]
    batch_size: int = 32  # calibration images
    stride: int = 10  # every stride-th timestep; 1 is the paper's
    images_per_pass: int = 128  # of all timesteps that share a forward pass
    finetune_steps: int = 100  # optimizer steps of the retraining
    finetune_batch: int = 32


def investigate(lab: Lab, config: Config) -> Finding:
    """Prune by every criterion, with every seed, and compare what comes out."""
    bench = lab.bench("fashion_unet")
    rows = []
    for seed in lab.seeds:
        rows += rate(bench, seed, config)
    return judge(rows)


def criteria(config: Config) -> dict[str, Stage]:
    """Every criterion by its name in the table, at equal size and calibration."""
    common = {
        "macs": config.macs,
        "batch_size": config.batch_size,
        "stride": config.stride,
        "images_per_pass": config.images_per_pass,
    }
    found = {
        f"threshold {value:g}": Stage.of("diff_pruning", threshold=value, **common)
        for value in THRESHOLDS
    }
    return found | {"taylor": Stage.of("taylor", **common)}


def rate(bench: Bench, seed: int, config: Config) -> list[dict[str, Value]]:
    """One row for each criterion."""
    sizes = {group.name: group.size for group in channel_groups(bench.dense.denoiser)}
    retraining = {"steps": config.finetune_steps, "batch_size": config.finetune_batch}
    recovery = Stage.of("finetune", **retraining)
    rows: list[dict[str, Value]] = []
    first: Notes = {}
    for name, stage in criteria(config).items():
        pipe, _, (note, *_) = bench.compress((stage,), seed)
        first = first or note
        _, quality = bench.quality(pipe, seed)
        tuned, _, _ = bench.compress((stage, recovery), seed)
        _, retrained = bench.quality(tuned, seed)
        rows.append(
            {
                "criterion": name,
                "seed": seed,
                "stop": (len(note["losses"]) - 1) * config.stride,
                "overlap": overlap(note["keep"], first["keep"]),
                "chance": chance_overlap(sizes, first["keep"]),
                "frechet": quality["frechet"],
                "retrained": retrained["frechet"],
            }
        )
    return rows


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from the intervals of differences over seeds."""
    found: dict[str, Paired] = {}
    for rival in RIVALS:
        found[rival] = paired(column(rows, JUDGED, "retrained"), column(rows, rival, "retrained"))
    missed = [rival for rival, pair in found.items() if not pair.below]
    verdict = verdict_of(len(missed), len(found))
    alike = ", ".join(
        f"{mean(column(rows, name, 'overlap')):.3f} at {name} (last timestep "
        f"{mean(column(rows, name, 'stop')):.0f})"
        for name in dict.fromkeys(str(row["criterion"]) for row in rows)
        if name != RIVALS[0]
    )
    gaps = "; ".join(f"{pair} against {rival}" for rival, pair in found.items())
    answer = (
        f"Retrained, the Fréchet distance at {JUDGED} differs by {gaps}. Channels kept as at "
        f"{RIVALS[0]}: {alike}; {mean(column(rows, RIVALS[0], 'chance')):.3f} by chance."
    )
    return Finding(verdict, answer, COLUMNS, tuple(rows), reason(found, missed))


def reason(found: Mapping[str, Paired], missed: Sequence[str]) -> str:
    """What the intervals say where the bar was not met."""
    worse = [rival for rival in missed if found[rival].above]
    open_ = [rival for rival in missed if not found[rival].above]
    parts = []
    if worse:
        parts.append(f"surely worse than {' and '.join(worse)}")
    if open_:
        parts.append(f"the interval against {' and '.join(open_)} holds zero")
    return "; ".join(parts)


def column(rows: Sequence[Mapping[str, Value]], criterion: str, key: str) -> list[float]:
    """One criterion's figures, in the order of the seeds."""
    return [float(row[key] or 0.0) for row in rows if row["criterion"] == criterion]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
