"""What does a quarter less buy in time and memory at the true size, unit by unit?

Published architectures with random weights in bf16, one guided denoiser call (batch 2): heads and
neurons, channels or whole layers go until about the same MACs are left (layers to a share of the
parameters, the others to the MACs that this leaves), and BK-SDM's lists on Stable Diffusion. Time
does not depend on what the weights are, so no checkpoint is needed; quality is not looked at.
Variants take turns; memory is the most that a call needs beyond the weights.

On a GPU every call is timed twice: as Python launches it, kernel by kernel, and replayed from a
CUDA graph, which leaves the GPU's own time. "Realised" is the part of the saved MACs that becomes
saved time: (1 - t / t_dense) over (1 - MACs / MACs_dense), attention products included; 1 is what
the literature's MACs promise.

Expect: `python -m methods experiment speed_at_true_size --device cuda` on a GPU with 40 GB free;
on a CPU choose a small model: `--set speed_at_true_size.models=fashion_t2i`. Without a record yet,
so its time is not known.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from methods import bk_sdm, registry, uniform_depth
from methods.harness import measure, zoo
from methods.harness.channels import channel_groups
from methods.harness.experiment import Column, Finding, Lab, Value, Verdict, paired
from methods.harness.measure import Macs, Timing
from methods.harness.pipeline import Pipeline, seeded
from methods.harness.surgery import cut, ratio_widths, select
from methods.harness.width import keep_units, width_layers

CARD = {
    "methods": ["uniform_depth", "bk_sdm", "ecodiff", "random_pruning"],
    "task": None,
    "bar": "on every architecture with layers to drop (not on MMDiTs) whole layers realise more of "
    "their saved MACs than heads and neurons or channels do, by the 95 % interval over rounds",
    "source": "SnapFusion, arXiv 2306.00980, and BK-SDM, arXiv 2305.15798, choose blocks by time",
}
SEEDS = 1  # intervals are over rounds
Realised = dict[str, list[float]]  # what was cut -> part of the saved MACs, by round
_FIXED = {"img_ids", "txt_ids"}  # inputs that all images of a batch share
_MOST, _HALVINGS = 0.95, 6  # of heads, neurons or channels that go; halvings of the search
_ALIGNED = 16  # neurons left are a multiple of this, as tensor cores like it


@dataclass(frozen=True)
class Config:
    """The same sizes for all architectures."""

    models: str = "sd15,sdxl,sd3_medium,dit_xl_2"  # of `python -m methods count`, with commas
    params: float = 0.75  # parameters left by layers
    macs: float = 0.75  # MACs left where no layers go
    batch: int = 2  # a guided call for one image
    rounds: int = 15


def investigate(lab: Lab, config: Config) -> Finding:
    """Build, cut and time one architecture after the other.

    Raises:
        ValueError: an architecture is unknown.
    """
    names = config.models.split(",")
    for name in names:
        if name not in zoo.ARCHITECTURES:
            raise ValueError(registry.unknown(f"model {name!r}", name, zoo.ARCHITECTURES))
    rows: list[dict[str, Value]] = []
    rivals: dict[str, list[str]] = {}
    for name in names:
        lab.report(f"{name}: build, cut, time")
        found, as_good = _architecture(name, lab, config)
        rows += found
        if as_good is not None:
            rivals[name] = as_good
        gc.collect()
        if lab.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return _finding(rows, rivals)


def _architecture(
    name: str, lab: Lab, config: Config
) -> tuple[list[dict[str, Value]], list[str] | None]:
    """Rows of one architecture, and what layers are not surely ahead of; None without layers."""
    inputs = batched(zoo.ARCHITECTURES[name].inputs(), config.batch)
    inputs = measure.placed(inputs, lab.device, torch.bfloat16)
    models = dict(variants(name, lab, config))
    timed = measure.time_denoisers(models, inputs, rounds=config.rounds, device=lab.device)
    macs = {kind: measure.count_macs(model, inputs) for kind, model in models.items()}
    rows: list[dict[str, Value]] = []
    launched: Realised = {}
    alone: Realised = {}
    graphed = None
    if lab.device.startswith("cuda"):
        try:
            graphed = _graphed(models, inputs, lab.device, config.rounds)
        except RuntimeError as error:  # an operation that no graph can hold
            lab.report(f"{name}: no CUDA graph: {str(error).splitlines()[0]}")
    for kind, model in models.items():
        row: dict[str, Value] = {
            "model": name,
            "cut": kind,
            "params": measure.count_params(model) / 1e6,
            "macs": macs[kind].total / macs["dense"].total,
        }
        row |= _judged(timed, kind, lab.device, macs, launched, "")
        if graphed is not None:
            row |= _judged(graphed, kind, lab.device, macs, alone, "graph_")
        else:
            row |= dict.fromkeys(("graph_ms", "graph_speedup", "graph_realised"))
        row["weights"] = measure.weight_bytes(model) / 1e9
        row["peak"] = _peak(model, inputs, lab.device) / 1e9
        rows.append(row)
    if "layers" not in launched:
        return rows, None
    rivals = []
    for kind in ("heads and neurons", "channels"):
        for found, how in ((launched, "as launched"), (alone, "from a graph")):
            if kind in found and not paired(found["layers"], found[kind]).above:
                rivals.append(f"{kind} {how}")
    return rows, rivals


def _judged(
    timed: Mapping[str, Timing],
    kind: str,
    device: str,
    macs: Mapping[str, Macs],
    realised: Realised,
    prefix: str,
) -> dict[str, Value]:
    """Time, speed-up and realised part of one cut; the part of every round goes to `realised`."""
    seconds, dense = _rounds(timed[kind], device), _rounds(timed["dense"], device)
    gained = [d / s for d, s in zip(dense, seconds, strict=True)]
    realised[kind] = _realised(seconds, dense, macs[kind], macs["dense"])
    return {
        f"{prefix}ms": 1000 * median(seconds),
        f"{prefix}speedup": median(gained),
        f"{prefix}realised": fmean(realised[kind]) if kind != "dense" else None,
    }


def _graphed(
    models: Mapping[str, nn.Module], inputs: dict[str, Any], device: str, rounds: int
) -> dict[str, Timing]:
    """Timings of CUDA graphs of one call each."""
    calls = {}
    for kind, model in models.items():
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    model(**inputs)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                model(**inputs)
        calls[kind] = graph.replay
    return measure.interleaved(calls, rounds=rounds, device=device)


def variants(name: str, lab: Lab, config: Config) -> Iterator[tuple[str, nn.Module]]:
    """(what was cut, model) in bf16 on the device; the dense one first."""
    seed = lab.seeds[0]

    def fresh() -> Pipeline:
        torch.manual_seed(seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(lab.device):
                model = zoo.ARCHITECTURES[name].build().eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
        return Pipeline(model, zoo.ddpm_scheduler())

    dense = fresh().denoiser
    yield "dense", dense
    meta, inputs = zoo.ARCHITECTURES[name].on_meta()
    whole = measure.count_macs(meta, inputs).total
    target = config.macs
    task: Any = None  # neither method looks at data
    if not name.startswith(("sd3", "flux")):  # depth.units describes no MMDiT
        layers = uniform_depth.Config(params=config.params)
        short = uniform_depth.compress(fresh(), task, layers)[0].denoiser
        placed = measure.placed(inputs, "meta", torch.bfloat16)
        target = measure.count_macs(short, placed).total / whole
        yield "layers", short

    def narrow(pipe: Pipeline, ratio: float) -> Pipeline:
        return keep_units(pipe, units(pipe.denoiser, ratio, seed))

    def thin(pipe: Pipeline, ratio: float) -> Pipeline:
        return cut(pipe, channels(pipe.denoiser, ratio, seed))

    yield "heads and neurons", narrow(fresh(), matched(name, narrow, whole, target)).denoiser
    if isinstance(dense, UNet2DConditionModel):
        yield "channels", thin(fresh(), matched(name, thin, whole, target)).denoiser
    if name.startswith(("sd1", "sd2")):
        for size in ("base", "small", "tiny"):
            student = bk_sdm.compress(fresh(), task, bk_sdm.Config(size=size))[0]
            yield f"BK-SDM-{size.capitalize()}", student.denoiser


def matched(
    name: str, change: Callable[[Pipeline, float], Pipeline], whole: int, target: float
) -> float:
    """The ratio, by bisection, at which a change leaves the target's MACs as nearly as may be.

    `target` is a fraction of `whole`, the architecture's MACs, attention included.
    """
    low, high = 0.0, _MOST
    best, gap = low, 1 - target
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        model, inputs = zoo.ARCHITECTURES[name].on_meta()
        changed = change(Pipeline(model, zoo.ddpm_scheduler()), middle).denoiser
        left = measure.count_macs(changed, inputs).total / whole
        if abs(left - target) < gap:
            best, gap = middle, abs(left - target)
        low, high = (middle, high) if left > target else (low, middle)
    return best


def units(model: nn.Module, ratio: float, seed: int) -> dict[str, list[int]]:
    """Random heads and neurons to keep in every layer, neurons in multiples of 16."""
    draw = seeded(seed, "speed_at_true_size/units")
    keep = {}
    for layer in width_layers(model):
        if layer.kind == "modulation":
            continue
        left = max(1, round(layer.units * (1 - ratio)))
        if layer.kind == "neurons" and left > _ALIGNED:
            left = round(left / _ALIGNED) * _ALIGNED
        keep[layer.name] = sorted(torch.randperm(layer.units, generator=draw)[:left].tolist())
    return keep


def channels(model: nn.Module, ratio: float, seed: int) -> dict[str, list[int]]:
    """Random channels to keep of every group, equally many of every GroupNorm group."""
    draw = seeded(seed, "speed_at_true_size/channels")
    groups = channel_groups(model)
    widths = ratio_widths(groups, ratio)
    return {
        group.name: select(group, torch.rand(group.size, generator=draw), widths[group.name])
        for group in groups
        if widths[group.name] < group.size
    }


def batched(inputs: dict[str, Any], batch: int) -> dict[str, Any]:
    """The inputs of one image repeated for a batch."""

    def grown(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: grown(k, v) for k, v in value.items()}
        if not isinstance(value, Tensor) or key in _FIXED:
            return value
        return value.expand(batch, *value.shape[1:]).clone()

    return {key: grown(key, value) for key, value in inputs.items()}


def _rounds(timing: Timing, device: str) -> tuple[float, ...]:
    """Wall time on a GPU, CPU time elsewhere."""
    return timing.wall.rounds if device.startswith("cuda") else timing.cpu.rounds


def _realised(
    seconds: tuple[float, ...], dense: tuple[float, ...], macs: Macs, dense_macs: Macs
) -> list[float]:
    """Saved time over saved MACs, round by round; no MACs saved give zeros."""
    saved = 1 - macs.total / dense_macs.total
    if saved <= 0:
        return [0.0] * len(seconds)
    return [(1 - s / d) / saved for s, d in zip(seconds, dense, strict=True)]


def _peak(model: nn.Module, inputs: dict[str, Any], device: str) -> int:
    def call() -> None:
        with torch.inference_mode():
            model(**inputs)

    return measure.peak_memory(call, device=device)


def _finding(rows: list[dict[str, Value]], rivals: dict[str, list[str]]) -> Finding:
    def of(kind: str, key: str) -> list[float]:
        return [float(r[key]) for r in rows if r["cut"] == kind and r[key] is not None]  # type: ignore[arg-type]

    if not rivals:
        raise ValueError(
            "models: none has layers that can be dropped, so there is nothing to compare"
        )
    parts = []
    prefix = "graph_" if of("layers", "graph_speedup") else ""
    for kind in ("layers", "heads and neurons", "channels"):
        found = of(kind, f"{prefix}realised")
        if found:
            gained = of(kind, f"{prefix}speedup")
            parts.append(
                f"{kind} realise {min(found):.0%} to {max(found):.0%} of the saved MACs as time "
                f"(speed-up {min(gained):.2f} to {max(gained):.2f})"
            )
    how = "In the GPU's own time" if prefix else "In CPU time"
    answer = f"{how}, {'; '.join(parts)}."
    if prefix:
        pairs = [(r["ms"], r["graph_ms"]) for r in rows if r["graph_ms"] is not None]
        slow = [float(ms) / float(alone) for ms, alone in pairs]  # type: ignore[arg-type]
        answer += (
            f" Launched one by one by Python a call takes {min(slow):.1f} to {max(slow):.1f} times "
            "the GPU's own time: there, only fewer launches help."
        )
    columns = (
        Column("model", "architecture"),
        Column("cut", "what went"),
        Column("params", "params, M", 1),
        Column("macs", "MACs left", 3),
        Column("graph_ms", "GPU ms", 2),
        Column("graph_speedup", "speed-up", 2),
        Column("graph_realised", "realised", 2),
        Column("ms", "ms as launched", 2),
        Column("speedup", "speed-up", 2),
        Column("realised", "realised", 2),
        Column("weights", "weights, GB", 2),
        Column("peak", "peak beyond them, GB", 3),
    )
    open_ = {name: kinds for name, kinds in rivals.items() if kinds}
    verdict: Verdict
    verdict = "shown" if not open_ else "in part" if len(open_) < len(rivals) else "not shown"
    why = "; ".join(
        f"on {name} layers are not surely ahead of {' or of '.join(kinds)}"
        for name, kinds in open_.items()
    )
    return Finding(verdict, answer, columns, tuple(rows), why)
