"""Can half of a decoder's channels go if it learns from latents that the diffusion model draws?

Half of the channels of the autoencoder's decoder are cut by magnitude. Cut alone, distilled on the
mean squared error to the whole decoder's images on latents drawn by the diffusion model (no
photograph needed), and distilled as long on as many encoded photographs: each decodes latents that
nothing was trained on, drawn by the same model, and draws whole images for the Fréchet distance.
The decoders are timed in turn.

At this scale: images of the distilled decoders are still farther from photographs than those of the
whole one, and by that measure encoded photographs serve better in all three seeds, though drawn
latents serve better by the error to the whole decoder's images, which is what the bar asks about.

Expect: `python -m methods experiment decoder_pruning`, 11 minutes of one core.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from methods.harness import decoder
from methods.harness.experiment import Column, Finding, Lab, Value, paired_logs
from methods.harness.measure import interleaved, weight_bytes
from methods.harness.metrics import DATA_RANGE
from methods.harness.pipeline import Pipeline
from methods.harness.run import Bench

CARD = {
    "methods": ["snapfusion"],
    "task": "fashion_t2i",
    "bar": "on drawn latents the decoder distilled on drawn latents is closer to the whole one "
    "than the decoder that was only cut and than the one distilled on encoded photographs, and it "
    "is measurably faster than the whole one, all by the 95 % interval over seeds",
    "source": "SnapFusion, arXiv 2306.00980, Table 1: half of the channels, 50 -> 13 million "
    "parameters, 369 -> 116 ms on a phone; whether photographs serve less well is our question",
}
ARMS = ("whole", "cut", "generated", "encoded")
COLUMNS = (
    Column("seed", "seed"),
    Column("decoder", "decoder"),
    Column("mse", "MSE to the whole decoder", 5),
    Column("psnr", "PSNR in dB", 2),
    Column("frechet", "Fréchet distance", 1),
    Column("bytes", "bytes"),
    Column("latency", "latency, whole = 1", 3),
)


@dataclass(frozen=True)
class Config:
    """How much is cut, and how long is distilled."""

    ratio: float = 0.5  # channels of the decoder removed
    steps: int = 120  # optimizer steps of either distillation
    pool: int = 8  # batches drawn for it, gone round in
    batch_size: int = 32
    learning_rate: float = 1e-3
    sampling_steps: int = 8  # of the latents, also those that are judged with
    held_out: int = 128  # latents that are judged with
    precision: Literal["bf16", "fp32"] = "bf16"  # in which latents are drawn


def investigate(lab: Lab, config: Config) -> Finding:
    """Cut and distil for every seed, and measure."""
    bench = lab.bench("fashion_t2i")
    rows: list[dict[str, Value]] = []
    for seed in lab.seeds:
        lab.report(f"seed {seed}: cut the decoder and distil it twice")
        rows += rate(bench, seed, config)
    return judge(rows)


def rate(bench: Bench, seed: int, config: Config) -> list[dict[str, Value]]:
    """One row for each decoder."""
    pipes = decoders(bench, seed, config)
    held_out = decoder.latents(
        bench.task_at(seed),
        "generated",
        config.held_out,
        config.sampling_steps,
        config.precision,
        "decoder/held out",
    )(0)
    left = latencies(bench, pipes, held_out)
    rows: list[dict[str, Value]] = []
    for name, pipe in pipes.items():
        error = 0.0 if name == "whole" else image_error(pipe, bench.dense, held_out)
        _, quality = bench.quality(pipe, seed)
        assert pipe.autoencoder is not None
        rows.append(
            {
                "seed": seed,
                "decoder": name,
                "mse": error,
                "psnr": psnr(error) if error else None,
                "frechet": quality["frechet"],
                "bytes": weight_bytes(pipe.autoencoder.decoder),
                "latency": left[name],
            }
        )
    return rows


def decoders(bench: Bench, seed: int, config: Config) -> dict[str, Pipeline]:
    """The dense pipeline with its whole decoder, and with the decoders that were cut."""
    cut, _ = decoder.pruned_decoder(bench.dense.private_copy(), config.ratio)
    pipes = {"whole": bench.dense, "cut": cut}
    sources: tuple[decoder.Source, ...] = ("generated", "encoded")
    for source in sources:
        pipe = cut.private_copy()
        drawn = decoder.latents(
            bench.task_at(seed),
            source,
            config.batch_size,
            config.sampling_steps,
            config.precision,
            "decoder/training",
        )
        pool = round_and_round([drawn(step) for step in range(min(config.pool, config.steps))])
        decoder.distil_decoder(pipe, bench.dense, pool, config.steps, config.learning_rate)
        pipes[source] = pipe
    return pipes


def round_and_round(batches: Sequence[Tensor]) -> decoder.Latents:
    """Batches of latents that start again when they are through."""
    return lambda step: batches[step % len(batches)]


@torch.no_grad()
def image_error(pipe: Pipeline, whole: Pipeline, latents: Tensor) -> float:
    """Mean squared difference of the clipped images that two pipelines decode."""
    found, wanted = (p.decode(latents).clamp(-1, 1) for p in (pipe, whole))
    return float((found - wanted).square().mean())


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of images in [-1, 1]."""
    return 10 * math.log10(DATA_RANGE**2 / error)


def latencies(bench: Bench, pipes: Mapping[str, Pipeline], latents: Tensor) -> dict[str, float]:
    """Measured time to decode one batch, over the whole decoder's, timed in turn."""
    protocol, device = bench.protocol, bench.latency_device
    batch = latents[: protocol.latency_batch].to(device)

    def call(pipe: Pipeline) -> Callable[[], None]:
        autoencoder = copy.deepcopy(pipe.autoencoder).to(device)  # type: ignore[union-attr]

        def decode() -> None:
            with torch.inference_mode():
                autoencoder.decode(batch)

        return decode

    timings = interleaved(
        {name: call(pipe) for name, pipe in pipes.items()},
        rounds=protocol.latency_rounds,
        threads=protocol.latency_threads,
        device=device,
    )
    clock = "wall" if device.type == "cuda" else "cpu"
    seconds = {name: getattr(timing, clock).median for name, timing in timings.items()}
    return {name: seconds[name] / seconds["whole"] for name in pipes}


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict, from intervals over seeds."""
    error = {name: values(rows, name, "mse") for name in ARMS[1:]}
    distance = {name: fmean(values(rows, name, "frechet")) for name in ARMS}
    rivals = {name: paired_logs(error["generated"], error[name]) for name in ("cut", "encoded")}
    ones = values(rows, "whole", "latency")
    faster = paired_logs(values(rows, "generated", "latency"), ones)
    size = values(rows, "generated", "bytes")[0] / values(rows, "whole", "bytes")[0]
    answer = (
        f"With {size:.1%} of the bytes and {faster.ratio} of the time, the decoder distilled on "
        f"drawn latents has an image error of {fmean(error['generated']):.3g} "
        f"({psnr(fmean(error['generated'])):.1f} dB): {rivals['cut'].ratio} of what cutting alone "
        f"leaves, {rivals['encoded'].ratio} of what as many steps on encoded photographs leave. "
        "Fréchet distance: " + ", ".join(f"{name} {d:.1f}" for name, d in distance.items()) + "."
    )
    missed = [f"error over {name} {pair.ratio}" for name, pair in rivals.items() if not pair.below]
    if not faster.below:
        missed.append(f"time {faster.ratio} of the whole decoder's")
    if not missed:
        return Finding("shown", answer, COLUMNS, tuple(rows))
    why = f"the interval does not clear the bar for {'; '.join(missed)}"
    partly = rivals["cut"].below
    return Finding("in part" if partly else "not shown", answer, COLUMNS, tuple(rows), why)


def values(rows: Sequence[Mapping[str, Value]], name: str, key: str) -> list[float]:
    """One column of one decoder, by seed."""
    return [float(row[key] or 0.0) for row in rows if row["decoder"] == name]
