"""Measure a trained base and write its model card: weights, curve, grid, Fréchet distance."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
matplotlib.use("Agg")

import matplotlib.pyplot as plt

from methods.harness import bases, journal, measure, metrics, run, train, zoo
from methods.harness.alignment import agreement
from methods.harness.checkpoint import read_tensors, save_base
from methods.harness.data import CLASS_NAMES
from methods.harness.features import FEATURE_PROTOCOL, lite0_features
from methods.harness.garments import held_out
from methods.harness.sample import sample, write_grid

LOG = "training_log.jsonl"
CARD = """---
license: mit
library_name: diffusers
pipeline_tag: {pipeline_tag}
datasets:
- zalando-datasets/fashion_mnist
---

# {name}

{describes}. {params:,} parameters, {macs:.1f} million MACs per denoiser call (convolution and
linear layers, one image). Trained here from scratch as a base for comparing pruning methods: small
enough for a laptop, good enough that damage shows.

![samples, not selected](samples.png)

*{pictured}*

## Data

Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747, MIT licence), 58,000 of the 60,000
training images; the other 2,000 are kept for calibration. The 10,000 test images were never
trained on and are the reference of every Fréchet distance.{data}

## Recipe

```
{commands}
```

{loss}, AdamW at a rate of {learning_rate:g}, {optimizer_steps:,} optimizer steps of {batch} images
({images:,} images seen), linear warm-up, cosine decay over the second half, gradient norm clipped
to 1, averaged weights (EMA), bf16 autocast. {minutes:.0f} minutes on shared CPU cores; every 50th
step is in `training_log.jsonl`.{remark}

![loss](loss.png)

## Quality

Measured on {date}, commit {commit}, seed {seed}.

| set | Fréchet distance to the test images | kernel distance |
| --- | --- | --- |
| {samples:,} samples, {steps} DDIM steps{guided} | {frechet:.1f} | {kernel:.3f} |
| {samples:,} training images (floor) | {floor_frechet:.1f} | {floor_kernel:.3f} |
{alignment}
Features: EfficientNet-Lite0 (ImageNet weights, 1,280 dimensions) at 64x64 pixels; not comparable
with Inception FIDs. Exact protocol, weights hash and seed: `card.json`.

## Use

```python
{use}
```

## Limits

Ten kinds of garment, {size} pixels: a test object, not an image generator. Conclusions drawn on it
do not carry over to large text-to-image models by themselves.
{limit}
Licence: MIT, as the data.
"""

EPSILON = (
    "Noise prediction with the linear schedule of Ho et al. 2020 (arXiv 2006.11239), mean\n"
    "squared error"
)
V = (
    "v prediction (Salimans and Ho 2022, arXiv 2202.00512) with the cosine schedule of Nichol and "
    "Dhariwal 2021,\nmean squared error, one request in ten emptied for guidance"
)
TINTS = """

Every photograph is tinted: a colour for the garment, another for the background, out of eight
(`methods/harness/garments.py`), and gets the caption that says so. 63 of the 560 captions never
occur in training; every word and every pair of colours in them does. The denoiser works on 4x16x16
latents of an autoencoder trained first on the same images (`autoencoder.json`); U-Net and text
encoder were trained together."""
UNCLIPPED = """
The scheduler must not clip predicted images (`clip_sample` is false): diffusers' DDIM would keep
the noise of the unclipped ones, and guided samples of many steps would fall apart
(`methods/results/experiments/clipped_guidance.json`).
"""

WORDS: dict[str, dict[str, str]] = {
    "fashion_unet": {
        "pipeline_tag": "unconditional-image-generation",
        "data": "",
        "loss": EPSILON,
        "size": "28x28 grey",
        "limit": "",
        "use": """from diffusers import DDIMPipeline

pipe = DDIMPipeline.from_pretrained("models/fashion_unet", use_safetensors=True)
image = pipe(num_inference_steps=20).images[0]""",
    },
    "fashion_dit": {
        "pipeline_tag": "unconditional-image-generation",
        "data": "",
        "loss": V,
        "size": "28x28 grey",
        "limit": UNCLIPPED,
        "use": """from methods.harness.checkpoint import load_base

pipe = load_base("fashion_dit")  # .denoiser is a stock DiTTransformer2DModel""",
    },
    "fashion_t2i": {
        "pipeline_tag": "text-to-image",
        "data": TINTS,
        "loss": V,
        "size": "32x32 colour",
        "limit": "",
        "use": """from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("models/fashion_t2i", use_safetensors=True)
pipe("a red coat on a yellow background", guidance_scale=5, num_inference_steps=20).images[0]""",
    },
}


def main(
    name: Annotated[str, typer.Argument(help="one of the shipped bases")],
    samples: Annotated[int, typer.Option(help="images for the Fréchet distance")] = 5_000,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 20,
    seed: int = 0,
    remark: Annotated[str, typer.Option(help="a sentence on how the training went")] = "",
    shipped: Annotated[bool, typer.Option(help="measure models/NAME again as it is")] = False,
    words: Annotated[
        bool, typer.Option(help="README.md again from card.json; no measuring")
    ] = False,
) -> None:
    """Turn the trained state in build/train into models/NAME, measured."""
    if name not in zoo.BASES:
        raise typer.BadParameter(f"unknown base {name!r}; known: {', '.join(zoo.BASES)}")
    folder = zoo.BASES[name].folder
    if words:
        _write(folder, _read(folder) | _training(journal.read(folder / LOG)))
        return
    if shipped:
        remark = remark or _read(folder)["remark"]
    else:
        _adopt(name, folder)

    precision = run.default_precision()
    protocol = run.Protocol(samples=samples, steps=steps, precision=precision)
    bench = run.Bench(name, protocol, report=typer.echo)
    images = bench.dense_images(seed)
    reference = bench.reference_stats
    training = bench.splits.train.take(torch.arange(samples))
    drawn, real = lite0_features(images), lite0_features(training)
    macs = measure.count_macs(bench.dense.denoiser, bench.task_at(seed).example_inputs())
    log = journal.read(folder / LOG)
    card: dict[str, Any] = {
        "name": name,
        "describes": zoo.BASES[name].describes,
        "params": measure.count_params(bench.dense.denoiser),
        "macs": macs.conv_linear,
        **_training(log),
        "samples": samples,
        "steps": steps,
        "frechet": metrics.frechet_distance(metrics.feature_stats(drawn), reference),
        "kernel": metrics.kernel_distance(drawn, bench.reference_features),
        "floor_frechet": metrics.frechet_distance(metrics.feature_stats(real), reference),
        "floor_kernel": metrics.kernel_distance(real, bench.reference_features),
        "remark": remark,
        "protocol": bench.protocol_record | {"features": dict(FEATURE_PROTOCOL)},
        "weights_sha256": bench.dense_sha256,
        **run.made_now(seed),
    }
    picture, card["pictured"] = _picture(bench, seed, steps)
    write_grid(folder / "samples.png", picture, 10 if bench.dense.conditioning else 8)
    card["agreement"], card["agreement_images"] = _agreements(bench, seed, images)
    _draw_loss(log, folder / "loss.png")
    _write(folder, card)
    typer.echo(f"Fréchet distance {card['frechet']:.1f}, floor {card['floor_frechet']:.1f}")


def _read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return found


def _write(folder: Path, card: dict[str, Any]) -> None:
    journal.write_text(folder / "card.json", json.dumps(card, indent=1, sort_keys=True) + "\n")
    journal.write_text(folder / "README.md", readme(folder))


def _training(log: list[dict[str, Any]]) -> dict[str, Any]:
    """What a training log tells of the recipe; the rate is the one that was warmed up to."""
    steps = int(log[-1]["step"])
    return {
        "optimizer_steps": steps,
        "batch": log[-1]["images"] // steps,
        "images": log[-1]["images"],
        "minutes": log[-1]["seconds"] / 60,
        "learning_rate": max(record["learning_rate"] for record in log),
    }


def readme(folder: Path) -> str:
    """The model card in words, from card.json alone."""
    card = _read(folder)
    name, describes, remark = card["name"], card["describes"], card["remark"]
    w = card["protocol"]["guidance"]
    commands = [
        f"python scripts/train_base.py {name} --steps {card['optimizer_steps']} "
        f"--batch-size {card['batch']} --learning-rate {card['learning_rate']:g}"
    ]
    if (folder / "autoencoder.json").is_file():
        first = json.loads((folder / "autoencoder.json").read_text(encoding="utf-8"))
        commands.insert(
            0,
            f"python scripts/train_autoencoder.py --steps {first['steps']} "
            f"--batch-size {first['batch_size']}",
        )
    return CARD.format(
        **card
        | {
            "describes": describes[0].upper() + describes[1:],
            "macs": card["macs"] / 1e6,
            "remark": f" {remark}" if remark else "",
            "guided": "" if w is None else f", guidance {w:g}",
            "alignment": _alignment(card["agreement"], card["agreement_images"]),
            "commands": "\n".join(commands),
        }
        | WORDS[name]
    )


def _adopt(name: str, folder: Path) -> None:
    """Save the averaged weights of the trained state as the base."""
    state = Path("build/train") / name / "state.safetensors"
    if not state.is_file():
        raise typer.BadParameter(
            f"{state} is not there; run scripts/train_base.py {name} first, or give --shipped to "
            "measure the base as it is"
        )
    tensors, _ = read_tensors(state)
    pipe = bases.untrained(name)
    averaged = {k.removeprefix("ema/"): v for k, v in tensors.items() if k.startswith("ema/")}
    train.load_weights(pipe.denoiser, averaged)
    save_base(bases.finished(pipe), folder)


def _picture(bench: run.Bench, seed: int, steps: int) -> tuple[torch.Tensor, str]:
    """Images for the card and what they are: one row for each class or garment."""
    task, dense = bench.task_at(seed), bench.dense
    if dense.conditioning is None:
        return bench.dense_images(seed)[:64], (
            f"64 samples of one seed, not selected: DDIM, {steps} sampling steps."
        )
    count = len(CLASS_NAMES)
    each = (len(dense.conditioning.names) - 1) // count  # rows of one garment
    draw = task.generator("card/rows")
    offsets = torch.randint(each, (count, count), generator=draw)
    rows = (torch.arange(count)[:, None] * each + offsets).flatten()
    images = sample(dense, task.noise(len(rows), "card"), steps, rows=rows)
    first = "; ".join(dense.conditioning.names[int(row)] for row in rows[:3])
    asked = "" if each == 1 else f" The first three were asked for as: {first}."
    return images, (
        f"100 samples of one seed, not selected, ten for each garment ({', '.join(CLASS_NAMES)}): "
        f"DDIM, {steps} sampling steps, guidance {dense.guidance:g}.{asked}"
    )


def _agreements(
    bench: run.Bench, seed: int, images: torch.Tensor
) -> tuple[dict[str, Any] | None, dict[str, int] | None]:
    """Fractions of images that show what was asked for, with and without guidance, and of how many.

    The same noise and requests with guidance and without.
    """
    rows = bench.rows(seed)
    if bench.classifier is None or rows is None:
        return None, None
    unguided = sample(bench.dense, bench.noise(seed), bench.protocol.steps, rows=rows, guidance=1.0)
    judged = {f"w={bench.dense.guidance:g}": (images, rows), "w=1": (unguided, rows)}
    if images.shape[1] == 3:
        never = torch.tensor([int(row) in held_out() for row in rows])
        judged["captions never trained on"] = (images[never], rows[never])
    real = bench.splits.reference
    first = torch.arange(bench.protocol.samples)
    judged["test photographs"] = (real.take(first), real.labels[first])
    found = {name: agreement(bench.classifier, *pair) for name, pair in judged.items()}
    return found, {name: len(pair[1]) for name, pair in judged.items()}


def _alignment(found: dict[str, Any] | None, counts: dict[str, int] | None) -> str:
    """The table of agreement, guided images first."""
    if found is None or counts is None:
        return ""
    guided = next(name for name in found if name.startswith("w=") and name != "w=1")
    order = [name for name in (guided, "w=1", "captions never trained on") if name in found]
    order.append("test photographs")
    keys = [key for key in ("class", "colour", "background", "all") if key in found[guided]]
    lines = ["", "| images that show what was asked for | n | " + " | ".join(keys) + " |"]
    lines.append("| --- " * (len(keys) + 2) + "|")
    for name in order:
        cells = " | ".join(f"{100 * found[name][key]:.1f} %" for key in keys)
        lines.append(f"| {name} | {counts[name]:,} | {cells} |")
    lines += [
        "",
        "The garment is judged by "
        "[garment_classifier](../garment_classifier/README.md), trained on real photographs"
        + (" alone, the\ncolours by pixels." if len(keys) > 1 else " alone."),
    ]
    if counts["w=1"] < counts[guided]:
        lines.append(f"w=1 was drawn for the first {counts['w=1']:,} requests of {guided} only.")
    lines.append("")
    return "\n".join(lines)


def _draw_loss(log: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.plot([r["images"] / 1000 for r in log], [r["loss"] for r in log], color="#2166ac")
    axes.set(xlabel="thousand images seen", ylabel="training loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png", metadata={"Software": None})
    plt.close(figure)
    journal.write_bytes(path, buffer.getvalue())


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
