"""One recipe on one task with one seed: compress, measure, record.

The record is one JSON file whose path is its key. A method never grades itself: everything in the
record but `notes` is measured here, against the dense model, in the same process.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from methods import registry
from methods.registry import Recipe, Stage

from . import bases, measure, metrics
from .alignment import GarmentClassifier, agreement, load_classifier
from .checkpoint import load_base, read_tensors, save_pruned, write_tensors
from .cost import metered
from .data import Splits, cache_folder
from .features import FEATURE_PROTOCOL, lite0_features
from .journal import write_text
from .pipeline import Pipeline, Task
from .sample import DTYPES, sample

Record = dict[str, Any]
Report = Callable[[str], None]

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "methods" / "results"
RUNS = ROOT / "build" / "runs"
NOISE = "quality/noise"
KEPT_IMAGES = 64  # images of a run that are kept for pictures
_NOTE_LIMIT = 600  # characters of JSON; longer notes stay in the model folder
_KERNEL_BLOCKS = 10
_SAMPLED_TOGETHER = {"cpu": 50, "cuda": 500}  # images a batch: what each device is fastest with


@dataclass(frozen=True)
class TaskData:
    """Where a task's images come from."""

    load: Callable[[], Splits]
    reference: str  # what the held-out reference is, for the record


TASKS = {
    "fashion_unet": TaskData(lambda: bases.splits("fashion_unet"), "Fashion-MNIST test images"),
    "fashion_dit": TaskData(lambda: bases.splits("fashion_dit"), "Fashion-MNIST test images"),
    "fashion_t2i": TaskData(
        lambda: bases.splits("fashion_t2i"), "Fashion-MNIST test images, tinted"
    ),
}


class BaseSteps(int):
    """Sampling steps that came with the base and were not chosen by a method.

    The protocol's take their place, also where a method chooses the very same number.
    """


def default_precision() -> str:
    """bf16 where the CPU computes with it, else fp32: emulated bf16 is many times slower."""
    flags = measure.system_info()["cpu_flags"]
    native = {"amx_bf16", "avx512_bf16", "bf16"} & set(flags)
    return "bf16" if native or torch.cuda.is_available() else "fp32"


@dataclass(frozen=True)
class Protocol:
    """How a run is measured; figures of different protocols do not belong in one table.

    The defaults are the committed comparison's, sized to two slow cores: more seeds rather than
    more samples.
    """

    samples: int = 500
    steps: int = 10  # sampling steps
    precision: str = "bf16"  # of the denoiser while sampling and timing
    reference: int = 10_000  # held-out images, the first of the split
    latency_batch: int = 16
    latency_rounds: int = 10
    latency_threads: int = 1
    # Where time and memory are measured; None: where the recipe runs. It decides no figure of
    # quality, so records that differ in it alone may stand in one table.
    latency_device: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        least = 2 * _KERNEL_BLOCKS
        for name, low in (("samples", least), ("reference", least), ("steps", 1)):
            value = getattr(self, name)
            if value < low:
                raise ValueError(f"{name} must be at least {low}, not {value}")
        if self.precision not in DTYPES:
            raise ValueError(f"precision must be bf16 or fp32, not {self.precision!r}")
        if min(self.latency_batch, self.latency_rounds, self.latency_threads) < 1:
            raise ValueError("latency needs at least one image, round and thread")

    def record(self, reference: str, guidance: float | None = None) -> Record:
        """What stands beside the figures; equal protocols give equal records."""
        return {
            "sampler": "ddim, eta 0",
            "steps": self.steps,
            "guidance": guidance,
            "samples": self.samples,
            "noise": f"generator {NOISE!r} of the run's seed",
            "precision": self.precision,
            "features": dict(FEATURE_PROTOCOL),
            "reference": {"set": reference, "size": self.reference},
            "latency": {
                "batch": self.latency_batch,
                "rounds": self.latency_rounds,
                "threads": self.latency_threads,
            },
        }


def record_path(root: Path, task: str, recipe: Recipe, seed: int) -> Path:
    """Path = key: root/<task>/<recipe>/<seed>.json."""
    return root / task / registry.slug(recipe) / f"{seed}.json"


def run_folder(root: Path, task: str, recipe: Recipe, seed: int) -> Path:
    """Where the model and the first images of a run go."""
    return root / task / registry.slug(recipe) / str(seed)


def write_record(path: Path, record: Record) -> None:
    """Write the JSON atomically; nan and infinity are refused."""
    write_text(path, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_record(path: Path) -> Record:
    """A whole record.

    Raises:
        ValueError: the file is cut, is not JSON or was not written by `write_record`.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 errors both are
        raise ValueError(f"{path}: damaged result ({error}); run it again") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or "quality" not in record:
        raise ValueError(f"{path}: not a result of this harness (schema {SCHEMA}); run it again")
    return record


def is_current(record: Record, bench: Bench, recipe: Recipe, seed: int) -> bool:
    """Whether a record answers exactly this question, so that it need not be run again."""
    return bool(
        record["recipe"] == recipe_record(recipe)
        and record["task"] == bench.task
        and record["seed"] == seed
        and record["protocol"] == bench.protocol_record
        and record["provenance"]["base_sha256"] == bench.dense_sha256
        and record["provenance"].get("device") == bench.device.type
        and record["latency"]["device"] == bench.latency_device.type
    )


def recipe_record(recipe: Recipe) -> list[Record]:
    """The recipe as JSON, every field of every Config written out."""
    return [{"method": stage.method, "config": dict(stage.settings)} for stage in recipe]


class Bench:
    """A task's dense model and reference, loaded once for many runs."""

    def __init__(
        self,
        task: str,
        protocol: Protocol,
        *,
        model: str | None = None,
        device: str = "cpu",
        report: Report = lambda _: None,
    ) -> None:
        """Load the dense model and the data.

        Raises:
            ValueError, FileNotFoundError: unknown task, or a model that cannot be loaded.
        """
        if task not in TASKS:
            raise ValueError(registry.unknown(f"task {task!r}", task, TASKS))
        self.task = task
        self.protocol = protocol
        self.report = report
        self.base = _base_name(task, model)
        report(f"load {self.base}")
        if torch.device(device).type == "cuda":
            # Else fp32 convolutions round their factors to 10 bits (TF32), matrices do not.
            torch.backends.cudnn.allow_tf32 = False
        dense = load_base(task if model is None else model).to(device)
        self.dense = replace(dense, steps=BaseSteps(dense.steps))
        self.dense.denoiser.eval().requires_grad_(True)
        self.dense_sha256 = tensors_sha256(self.dense.denoiser)
        self.splits = TASKS[task].load()
        held_out = len(self.splits.reference)
        if protocol.reference > held_out:
            raise ValueError(f"reference={protocol.reference}: the split holds {held_out} images")
        self._dense_images: dict[int, Tensor] = {}
        self._dense_features: dict[int, Tensor] = {}
        self._latest: tuple[tuple[int, str, str], tuple[Pipeline, Record, Record]] | None = None

    @property
    def device(self) -> torch.device:
        return self.dense.device

    @property
    def latency_device(self) -> torch.device:
        return torch.device(self.protocol.latency_device or self.device)

    @cached_property
    def protocol_record(self) -> Record:
        guidance = None if self.dense.conditioning is None else self.dense.guidance
        record = self.protocol.record(TASKS[self.task].reference, guidance)
        if _scheduler_settings(self.dense).get("clip_sample"):
            record["sampler"] += ", predicted images clipped"
        if self.dense.conditioning is not None:
            record["requests"] = "every class or caption about equally often"
        return record

    @cached_property
    def classifier(self) -> GarmentClassifier | None:
        """What judges the images of a task that asks for garments; None for the others."""
        asks = self.dense.conditioning is not None and self.task in TASKS
        return load_classifier().to(self.device) if asks else None

    @cached_property
    def reference_features(self) -> Tensor:
        """Features of the held-out images, (N, 1280), cached on disk."""
        images = self.splits.reference.take(torch.arange(self.protocol.reference))
        key = {"features": dict(FEATURE_PROTOCOL), "images": _tensor_sha256(images)}

        def compute() -> dict[str, Tensor]:
            self.report(f"features of {len(images)} reference images (kept for next time)")
            return {"features": lite0_features(images, device=self.device)}

        return _cached("reference", key, compute)["features"]

    @cached_property
    def reference_stats(self) -> metrics.FeatureStats:
        return metrics.feature_stats(self.reference_features.to(self.device))

    @cached_property
    def reference_kernel(self) -> metrics.KernelSet:
        return metrics.kernel_set(self.reference_features.to(self.device))

    def rows(self, seed: int) -> Tensor | None:
        """What the images of a seed are asked for; None where nothing can be asked."""
        return self.task_at(seed).prompts(self.protocol.samples, NOISE)

    def noise(self, seed: int) -> Tensor:
        """The noise that dense and pruned start from, (N, C, H, W)."""
        return self.task_at(seed).noise(self.protocol.samples, NOISE)

    def task_at(self, seed: int) -> Task:
        return Task(name=self.task, dense=self.dense, splits=self.splits, seed=seed)

    def dense_images(self, seed: int) -> Tensor:
        """Images of the dense model, cached on disk by weights, protocol and seed."""
        return self._dense(seed)["images"]

    def _dense(self, seed: int) -> dict[str, Tensor]:
        protocol = self.protocol
        if seed not in self._dense_images:
            key = {
                "base": self.dense_sha256,
                "scheduler": _scheduler_settings(self.dense),
                "steps": protocol.steps,
                "samples": protocol.samples,
                "precision": protocol.precision,
                "device": self.device.type,
                "features": dict(FEATURE_PROTOCOL),
                "noise": _tensor_sha256(self.noise(seed)[:1]),
                "seed": seed,
            }
            if self.dense.conditioning is not None:
                key["guidance"] = self.dense.guidance
            if around := _around(self.dense):
                key["around"] = _tensors_sha256(around)

            def compute() -> dict[str, Tensor]:
                images = self.sample(self.dense, seed, "the dense model")
                return {
                    "images": images,
                    "features": lite0_features(images, device=self.device),
                }

            found = _cached("dense", key, compute)
            self._dense_images[seed] = found["images"]
            self._dense_features[seed] = found["features"]
        return {"images": self._dense_images[seed], "features": self._dense_features[seed]}

    def sample(self, pipe: Pipeline, seed: int, what: str = "the pruned model") -> Tensor:
        """Images (N, C, H, W) of the protocol's noise and requests, on the CPU.

        In the protocol's sampling steps, or in the pipeline's own where a method changed them: a
        model that learned to take 8 steps is a model of 8 steps.
        """
        protocol = self.protocol
        steps = protocol.steps if isinstance(pipe.steps, BaseSteps) else pipe.steps
        self.report(f"sample {protocol.samples} images from {what}, {steps} steps each")
        return sample(
            pipe,
            self.noise(seed),
            steps,
            rows=self.rows(seed),
            batch_size=_SAMPLED_TOGETHER[self.device.type],
            precision=protocol.precision,  # type: ignore[arg-type]
        )

    def run(self, recipe: Recipe, seed: int = 0, folder: Path | None = None) -> Record:
        """Apply the recipe to a private copy and measure what comes out.

        `folder`, if given, receives the pruned model (`model/`) and the first images
        (`samples.safetensors`).

        Raises:
            ValueError: a method refuses the model or the request, or breaks the contract.
        """
        pipe, costs, notes = self.compress(recipe, seed)
        task = self.task_at(seed)
        inputs = task.example_inputs(self.protocol.latency_batch, self.latency_device)
        size, macs = self._size(pipe, task)
        self.report("time dense and pruned in turn")
        latency = self._latency(pipe, inputs, macs)
        memory = self._memory(pipe, inputs)
        images, quality = self.quality(pipe, seed)
        if folder is not None:
            save_pruned(pipe, folder / "model", self.base, {"seed": seed, "stages": notes})
            write_tensors(folder / "samples.safetensors", {"images": images[:KEPT_IMAGES]}, {})
        return {
            "schema": SCHEMA,
            "task": self.task,
            "slug": registry.slug(recipe),
            "recipe": recipe_record(recipe),
            "seed": seed,
            "size": size,
            "latency": latency,
            "memory": memory,
            "quality": quality,
            "protocol": self.protocol_record,
            "cost": costs,
            "notes": [_brief(note) for note in notes],
            "provenance": {
                "command": self._command(recipe, seed),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                **git_state(),
                "code_sha256": code_sha256(recipe),
                "base": self.base,
                "base_sha256": self.dense_sha256,
                "device": self.device.type,
                "system": measure.system_info(),
            },
        }

    def compress(self, recipe: Recipe, seed: int) -> tuple[Pipeline, list[Record], list[Record]]:
        """The recipe applied to a private copy: (pipeline, cost, notes), one of each a stage.

        Raises:
            ValueError: a method refuses the model or the request, or breaks the contract.
        """
        registry.check_task(self.task, [stage.method for stage in recipe])
        task = self.task_at(seed)
        pipe, cost, note = self._first_stage(recipe[0], task)
        costs, notes = [cost], [note]
        for stage in recipe[1:]:
            pipe, cost, note = self._apply(stage, pipe, task)
            costs.append(cost)
            notes.append(note)
        pipe.denoiser.eval()
        if tensors_sha256(self.dense.denoiser) != self.dense_sha256:
            raise ValueError("the recipe changed the dense model, which every row is compared with")
        return pipe, costs, notes

    def _first_stage(self, stage: Stage, task: Task) -> tuple[Pipeline, Record, Record]:
        """The dense model after one stage; the latest is kept for the same stage with retraining.

        What it cost is what it cost when it was computed, in this process.
        """
        key = (task.seed, stage.method, json.dumps(stage.settings, sort_keys=True))
        if self._latest is None or self._latest[0] != key:
            self._latest = (key, self._apply(stage, self.dense.private_copy(), task))
        pipe, cost, note = self._latest[1]
        return pipe.private_copy(), cost, note

    def _apply(self, stage: Stage, pipe: Pipeline, task: Task) -> tuple[Pipeline, Record, Record]:
        self.report(f"compress: {stage.method}")
        module = _load(stage.method)
        config = module.Config(**stage.settings)
        try:
            with metered(type(pipe.denoiser), self.device) as cost:
                pipe, notes = module.compress(pipe, task, config)
        except (ValueError, FloatingPointError) as error:
            raise ValueError(f"{stage.method}: {error}") from error
        check_bare(pipe.denoiser)
        own = {p.data_ptr() for p in pipe.denoiser.parameters()}
        if own & {p.data_ptr() for p in self.dense.denoiser.parameters()}:
            raise ValueError(f"{stage.method} returned tensors of the dense model, not a copy")
        name = {"method": stage.method}
        return pipe, name | cost.record(), name | notes

    def _size(self, pipe: Pipeline, task: Task) -> tuple[Record, tuple[measure.Macs, measure.Macs]]:
        record, macs = _sizes(pipe.denoiser, task)
        dense_record, dense_macs = self._dense_size
        return {**record, "dense": dict(dense_record)}, (dense_macs, macs)

    @cached_property
    def _dense_size(self) -> tuple[Record, measure.Macs]:
        return _sizes(self.dense.denoiser, self.task_at(0))

    def _latency(
        self, pipe: Pipeline, inputs: Record, macs: tuple[measure.Macs, measure.Macs]
    ) -> Record:
        # Not channels-last: GroupNorm is so much slower there that the whole U-Net is.
        protocol = self.protocol
        timings = measure.time_denoisers(
            {"dense": self.dense.denoiser, "pruned": pipe.denoiser},
            inputs,
            rounds=protocol.latency_rounds,
            threads=protocol.latency_threads,
            device=self.latency_device,
            dtype=DTYPES[protocol.precision],
        )
        gain = measure.speedup(timings["dense"], timings["pruned"], *macs)
        return {
            "batch": protocol.latency_batch,
            "threads": protocol.latency_threads,
            "precision": protocol.precision,
            "device": self.latency_device.type,
            "speedup_cpu": round(gain.cpu, 4),
            "speedup_wall": round(gain.wall, 4),
            "fewer_macs_but_slower": gain.fewer_macs_but_slower,
            **{
                name: {
                    "cpu_seconds": [round(s, 6) for s in timing.cpu.rounds],
                    "wall_seconds": [round(s, 6) for s in timing.wall.rounds],
                }
                for name, timing in timings.items()
            },
        }

    def _memory(self, pipe: Pipeline, inputs: Record) -> Record:
        def peak(model: nn.Module) -> int:
            if self.device != self.latency_device:
                model = copy.deepcopy(model).to(self.latency_device)

            def step() -> None:
                with torch.no_grad():
                    model(**inputs)

            return measure.peak_memory(step, device=self.latency_device)

        return {
            "what": "activations of one sampling step in fp32, weights not included",
            "batch": self.protocol.latency_batch,
            "peak_bytes": peak(pipe.denoiser),
            "dense_peak_bytes": peak(self.dense.denoiser),
        }

    def quality(self, pipe: Pipeline, seed: int) -> tuple[Tensor, Record]:
        """(images, figures) of a pipeline against the reference and the dense model's images.

        The figures are a record's: frechet, kernel, kernel_standard_error, mse_to_dense,
        ssim_to_dense and, where garments can be asked for, agreement.
        """
        dense = self._dense(seed)
        if self._is_dense(pipe):
            images, features = dense["images"], dense["features"]
        else:
            images = self.sample(pipe, seed)
            features = lite0_features(images, device=self.device)
        self.report("compare with the reference and with the dense model's images")
        features = features.to(self.device)
        quality: Record = {
            "frechet": metrics.frechet_distance(
                metrics.feature_stats(features), self.reference_stats
            ),
            "kernel": metrics.kernel_distance(features, self.reference_kernel),
            "kernel_standard_error": metrics.kernel_distance_error(
                features, self.reference_kernel.features, blocks=_KERNEL_BLOCKS
            ),
            "mse_to_dense": metrics.same_noise_mse(images, dense["images"]),
            "ssim_to_dense": metrics.ssim(images, dense["images"]),
        }
        rows = self.rows(seed)
        if self.classifier is not None and rows is not None:
            quality["agreement"] = agreement(self.classifier, images, rows)
        return images, quality

    def _is_dense(self, pipe: Pipeline) -> bool:
        return (
            tensors_sha256(pipe.denoiser) == self.dense_sha256
            and isinstance(pipe.steps, BaseSteps)
            and not pipe.edits
            and _scheduler_settings(pipe) == _scheduler_settings(self.dense)
        )

    def _command(self, recipe: Recipe, seed: int) -> str:
        words = ["python", "-m", "methods", "run", *registry.arguments(recipe)]
        words += ["--task", self.task, "--seed", str(seed)]
        for option in ("samples", "steps", "reference", "precision"):
            words += [f"--{option}", str(getattr(self.protocol, option))]
        if self.device.type != "cpu":
            words += ["--device", self.device.type]
        if self.latency_device.type != self.device.type:
            words += ["--latency-device", self.latency_device.type]
        if self.base != self.task:
            words += ["--model", self.base]
        return " ".join(words)


def run(
    task: str,
    recipe: Recipe,
    seed: int = 0,
    *,
    model: str | None = None,
    protocol: Protocol | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    report: Report = lambda _: None,
) -> Record:
    """Load the task's base (or `model`), apply the recipe and return the record of it."""
    protocol = protocol or replace(Protocol(), precision=default_precision())
    bench = Bench(task, protocol, model=model, device=device, report=report)
    return bench.run(recipe, seed, folder)


# --- contract --------------------------------------------------------------------------------


def check_bare(model: nn.Module) -> None:
    """Raise ValueError where a method left hooks, parametrizations, wrappers or bad numbers."""
    for name, module in model.named_modules():
        where = name or type(module).__name__
        hooks = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        if any(hooks):
            raise ValueError(f"{where}: a hook was left on the module; bake masks in")
        if "parametrizations" in module._modules:
            raise ValueError(f"{where}: a parametrization was left on the module; bake masks in")
        if "forward" in vars(module):
            raise ValueError(f"{where}: forward was replaced on the instance")
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"{name} holds values that are not finite")


def tensors_sha256(model: nn.Module) -> str:
    """Hash of all tensors of a model: names, types, shapes and bytes."""
    return _tensors_sha256(model.state_dict())


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()


def _tensor_sha256(tensor: Tensor) -> str:
    return hashlib.sha256(f"{tuple(tensor.shape)}".encode() + _raw(tensor)).hexdigest()


def _raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


# --- provenance ------------------------------------------------------------------------------


def _git_state() -> Record:
    def git(*words: str) -> str | None:
        try:
            result = subprocess.run(
                ["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


# The tree may be edited while a sweep runs on; its records tell of the code that they come from.
_GIT_STATE = _git_state()
_SOURCES = {path: path.read_bytes() for path in sorted((ROOT / "methods").rglob("*.py"))}


def git_state() -> Record:
    """Commit and whether tracked files differed from it, when this process started.

    Nulls outside a git checkout.
    """
    return dict(_GIT_STATE)


def made_now(seed: int) -> Record:
    """When, by which code and where a model was made or measured, for its card."""
    date = datetime.now(UTC).date().isoformat()
    return {"date": date, "seed": seed, **git_state(), "system": measure.system_info()}


def source(*parts: str) -> bytes:
    """A file of `methods/` as it was when this process started.

    Raises:
        ValueError: there was none.
    """
    path = ROOT.joinpath("methods", *parts)
    if path not in _SOURCES:
        raise ValueError(f"methods/{'/'.join(parts)} was not there when this process started")
    return _SOURCES[path]


def code_sha256(recipe: Recipe) -> str:
    """Hash of the harness and of the recipe's method files, as they were at the start."""
    names = sorted(path.name for path in _SOURCES if path.parent.name == "harness")
    files: list[tuple[str, ...]] = [("harness", name) for name in names]
    files += [(name,) for name in sorted({f"{stage.method}.py" for stage in recipe})]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file[-1].encode() + b"\0" + source(*file))
    return digest.hexdigest()


def _load(method: str) -> ModuleType:
    """A method's module; what is imported only now has to be what it was at the start.

    Raises:
        ValueError: a file was edited in between.
    """
    before = set(sys.modules)
    module = registry.load(method)
    fresh = {name: sys.modules[name] for name in sys.modules.keys() - before}
    for name, found in fresh.items():
        path = Path(getattr(found, "__file__", None) or "")
        if name.startswith("methods.") and path.read_bytes() != _SOURCES.get(path):
            for other in fresh:
                if other.startswith("methods."):
                    del sys.modules[other]  # so that the next request is refused too
            raise ValueError(
                f"{path.relative_to(ROOT)} was edited after this process started, so that no "
                "record could tell which code it comes from; start again"
            )
    return module


def _sizes(model: nn.Module, task: Task) -> tuple[Record, measure.Macs]:
    macs = measure.count_macs(model, task.example_inputs(1))
    record = {
        "params": measure.count_params(model),
        "nonzero_params": measure.count_nonzero(model),
        "weight_bytes": measure.weight_bytes(model),
        "macs": macs.conv_linear,
        "macs_with_attention": macs.total,
    }
    return record, macs


def _around(pipe: Pipeline) -> dict[str, Tensor]:
    """What images depend on beside the denoiser: the autoencoder and what is asked for."""
    found: dict[str, Tensor] = {}
    if pipe.conditioning is not None:
        found |= {f"conditioning/{key}": table for key, table in pipe.conditioning.tables.items()}
    if pipe.autoencoder is not None:
        found |= {f"autoencoder/{key}": t for key, t in pipe.autoencoder.state_dict().items()}
        found["scaling_factor"] = torch.tensor(float(pipe.autoencoder.config.scaling_factor))
    return found


def _base_name(task: str, model: str | None) -> str:
    """What a record may say about the base: a hub id or a folder's name, never a whole path."""
    if model is None:
        return task
    return Path(model).resolve().name if os.path.isdir(model) else model  # noqa: PTH112


def _scheduler_settings(pipe: Pipeline) -> Record:
    config = dict(pipe.scheduler.config)
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _brief(note: Record) -> Record:
    """Notes short enough for a record: number series become their ends, long ones are named."""
    short: Record = {}
    omitted = []
    for key, value in note.items():
        if len(json.dumps(value)) <= _NOTE_LIMIT:
            short[key] = value
        elif isinstance(value, list) and all(type(v) in (int, float) for v in value):
            short[key] = {"count": len(value), "first": value[0], "last": value[-1]}
            short[key] |= {"min": min(value), "max": max(value)}
        else:
            omitted.append(key)
    if omitted:
        short["only_in_model_folder"] = omitted
    return short


# --- cache -----------------------------------------------------------------------------------


def _cached(kind: str, key: Record, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from the cache folder, or computed and kept; a damaged file is computed again."""
    text = json.dumps(key, sort_keys=True, default=str)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    path = cache_folder() / "measured" / f"{kind}-{name}.safetensors"
    with contextlib.suppress(OSError, ValueError):  # absent or damaged
        tensors, note = read_tensors(path)
        if note.get("key") == text:
            return tensors
    tensors = compute()
    with contextlib.suppress(OSError):  # a read-only cache costs time, nothing else
        write_tensors(path, tensors, {"key": text})
    return tensors
