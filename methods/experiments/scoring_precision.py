"""Which short cuts of importance scoring leave the selection as it is?

`diff_pruning` in the full form (fp32, every 4th timestep, 32 calibration images) and with one thing
made cheaper at a time: the model under bf16 autocast, every 8th and every 25th timestep, 8 images,
and all at once. What is compared are the kept channels. Another draw of the 32 images and their
noise gives the yardstick: a selection is only known up to the data that it was made from, so a
short cut that moves fewer channels than a redraw does costs nothing that can be told.

Cost is what the harness meters: seconds, images through the denoiser, and the growth of memory.

At this scale: fewer images are a redraw in themselves, so with 8 of 32 the bar cannot be cleared by
much, whatever else is made cheaper. Neither 8 images alone nor all short cuts together can be told
from a redraw; together they keep slightly fewer channels than 8 images alone, with every seed.

Expect: `python -m methods experiment scoring_precision`, 22 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from methods.harness.channels import channel_groups
from methods.harness.experiment import Column, Finding, Lab, Paired, Value, paired, verdict_of
from methods.harness.run import Bench
from methods.harness.scores import chance_overlap, overlap
from methods.registry import Settings, Stage

CARD = {
    "methods": ["diff_pruning"],
    "task": "fashion_unet",
    "bar": "each short cut keeps more of the full form's channels than the full form keeps on "
    "another draw of calibration images and noise, by the 95 % interval over seeds",
    "source": "arithmetic of arXiv 2305.10924 with the savings named; the bar is this project's",
}
REDRAWN = "other images and noise"
_OTHER_SEEDS = 10_000  # added to a seed for the redraw, so that it meets none that is used
COLUMNS = (
    Column("scoring", "scoring"),
    Column("seed", "seed"),
    Column("overlap", "channels kept as in full", 4),
    Column("chance", "by chance", 3),
    Column("seconds", "seconds", 2),
    Column("images", "images through the denoiser"),
    Column("memory_mb", "memory growth, MB", 0),
)


@dataclass(frozen=True)
class Config:
    """The full form, and how far each short cut goes."""

    macs: float = 0.5  # convolution and linear MACs left, (0, 1]
    threshold: float = 0.05  # relative loss at which accumulation stops
    stride: int = 4  # of the full form
    some: int = 8  # every 8th timestep
    few: int = 25  # every 25th timestep
    many: int = 32  # calibration images of the full form
    handful: int = 8  # calibration images of the cheap form
    images_per_pass: int = 1024  # of all timesteps that share a forward pass


def investigate(lab: Lab, config: Config) -> Finding:
    """Score in every way with every seed and compare what is kept."""
    bench = lab.bench("fashion_unet")
    rows = []
    for seed in lab.seeds:
        rows += rate(bench, seed, config)
    return judge(rows)


def ways(config: Config) -> dict[str, Stage]:
    """The full form first, then the short cuts, by their names in the table."""
    full: Settings = {
        "macs": config.macs,
        "threshold": config.threshold,
        "stride": config.stride,
        "batch_size": config.many,
        "images_per_pass": config.images_per_pass,
    }
    changes: dict[str, Settings] = {
        "full": {},
        "bf16": {"precision": "bf16"},
        f"stride {config.some}": {"stride": config.some},
        f"stride {config.few}": {"stride": config.few},
        f"{config.handful} images": {"batch_size": config.handful},
        "all of them": {
            "precision": "bf16",
            "stride": config.few,
            "batch_size": config.handful,
        },
    }
    return {
        name: Stage.of("diff_pruning", **{**full, **change}) for name, change in changes.items()
    }


def rate(bench: Bench, seed: int, config: Config) -> list[dict[str, Value]]:
    """One row for each way, the redraw included."""
    sizes = {group.name: group.size for group in channel_groups(bench.dense.denoiser)}
    stages = ways(config)
    runs = [(name, stage, seed) for name, stage in stages.items()]
    runs.insert(1, (REDRAWN, stages["full"], seed + _OTHER_SEEDS))
    rows: list[dict[str, Value]] = []
    reference = None
    for name, stage, drawn in runs:
        _, (cost, *_), (note, *_) = bench.compress((stage,), drawn)
        reference = reference or note["keep"]
        rows.append(
            {
                "scoring": name,
                "seed": seed,
                "overlap": overlap(note["keep"], reference),
                "chance": chance_overlap(sizes, reference),
                "seconds": cost["seconds"],
                "images": cost["denoiser_images"],
                "memory_mb": cost["peak_bytes"] / 1e6,
            }
        )
    return rows


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from the intervals of differences to the redraw over seeds."""
    names = list(dict.fromkeys(str(row["scoring"]) for row in rows))
    cuts = [name for name in names if name not in ("full", REDRAWN)]
    redrawn = column(rows, REDRAWN, "overlap")
    found: dict[str, Paired] = {
        name: paired(column(rows, name, "overlap"), redrawn) for name in cuts
    }
    missed = [name for name, pair in found.items() if not pair.above]
    verdict = verdict_of(len(missed), len(found))
    full = mean(column(rows, "full", "images"))
    kept = "; ".join(
        f"{name} {mean(column(rows, name, 'overlap')):.4f} (more than redrawn by {pair}) for "
        f"{mean(column(rows, name, 'images')) / full:.3f} of the images"
        for name, pair in found.items()
    )
    answer = f"Channels kept as in full: {mean(redrawn):.4f} with {REDRAWN}; {kept}."
    why = f"no surely larger overlap than a redraw's: {', '.join(missed)}" if missed else ""
    return Finding(verdict, answer, COLUMNS, tuple(rows), why)


def column(rows: Sequence[Mapping[str, Value]], scoring: str, key: str) -> list[float]:
    """One way's figures, in the order of the seeds."""
    return [float(row[key] or 0.0) for row in rows if row["scoring"] == scoring]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
