"""Measure a trained base and write its model card: weights, curve, grid, Frechet distance."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
matplotlib.use("Agg")

import matplotlib.pyplot as plt

from methods.harness import journal, measure, metrics, run, zoo
from methods.harness.checkpoint import read_tensors, save_base
from methods.harness.features import FEATURE_PROTOCOL, lite0_features
from methods.harness.sample import write_grid

CARD = """---
license: mit
library_name: diffusers
pipeline_tag: unconditional-image-generation
datasets:
- zalando-datasets/fashion_mnist
---

# {name}

{describes}. {params:,} parameters, {macs:.1f} million MACs per denoiser call (convolution and
linear layers, one 28x28 image). Trained here from scratch as a base for comparing pruning methods:
small enough for a laptop, good enough that damage shows.

![64 samples, not selected](samples.png)

*64 samples of one seed, not selected: DDIM, {steps} sampling steps.*

## Data

Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747, MIT licence), 58,000 of the 60,000
training images; the other 2,000 are kept for calibration. The 10,000 test images were never
trained on and are the reference of every Frechet distance.

## Recipe

`python scripts/train_base.py {name} --steps {optimizer_steps} --batch-size {batch}`

Noise prediction with the linear schedule of Ho et al. 2020 (arXiv 2006.11239), mean squared error,
AdamW, {optimizer_steps:,} optimizer steps of {batch} images ({images:,} images seen), linear
warm-up, cosine decay over the second half, gradient norm clipped to 1, averaged weights (EMA),
bf16 autocast. {minutes:.0f} minutes on two shared CPU cores; every 50th step is in
`training_log.jsonl`. {remark}

![loss](loss.png)

## Quality

| set | Frechet distance to the test images | kernel distance |
| --- | --- | --- |
| {samples:,} samples, {steps} DDIM steps | {frechet:.1f} | {kernel:.3f} |
| {samples:,} training images (floor) | {floor_frechet:.1f} | {floor_kernel:.3f} |

Features: EfficientNet-Lite0 (ImageNet weights, 1,280 dimensions) at 64x64 pixels; not comparable
with Inception FIDs. Exact protocol, weights hash and seed: `card.json`.

## Use

```python
from diffusers import DDIMPipeline

pipe = DDIMPipeline.from_pretrained("models/{name}", use_safetensors=True)
image = pipe(num_inference_steps={steps}).images[0]
```

## Limits

Grey, 28x28, ten kinds of garment: a test object, not an image generator. Conclusions drawn on it
do not carry over to large text-to-image models by themselves.

Licence: MIT, as the data.
"""


def main(
    name: Annotated[str, typer.Argument(help="one of the shipped bases")],
    samples: Annotated[int, typer.Option(help="images for the Frechet distance")] = 5_000,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 20,
    seed: int = 0,
    remark: Annotated[str, typer.Option(help="a sentence on how the training went")] = "",
) -> None:
    """Turn the trained state in build/train into models/NAME, measured."""
    if name not in zoo.BASES:
        raise typer.BadParameter(f"unknown base {name!r}; known: {', '.join(zoo.BASES)}")
    folder = zoo.BASES[name].folder
    state = Path("build/train") / name / "state.safetensors"
    if not state.is_file():
        raise typer.BadParameter(f"{state} is not there; run scripts/train_base.py {name} first")
    tensors, note = read_tensors(state)
    model = zoo.BASES[name].build().eval()
    averaged = {k.removeprefix("ema/"): v for k, v in tensors.items() if k.startswith("ema/")}
    model.load_state_dict(averaged, strict=True)
    save_base(model, zoo.ddpm_scheduler(), folder)

    precision = run.default_precision()
    protocol = run.Protocol(samples=samples, steps=steps, precision=precision)
    bench = run.Bench(name, protocol, report=typer.echo)
    images = bench.dense_images(seed)
    reference = bench.reference_stats
    training = bench.splits.train.take(torch.arange(samples))
    drawn, real = lite0_features(images), lite0_features(training)
    macs = measure.count_macs(bench.dense.denoiser, bench.task_at(seed).example_inputs())
    log = journal.read(folder / "training_log.jsonl")
    optimizer_steps = int(note["step"])
    card: dict[str, Any] = {
        "name": name,
        "describes": zoo.BASES[name].describes,
        "params": measure.count_params(bench.dense.denoiser),
        "macs": macs.conv_linear,
        "optimizer_steps": optimizer_steps,
        "batch": log[-1]["images"] // optimizer_steps,
        "images": log[-1]["images"],
        "minutes": log[-1]["seconds"] / 60,
        "samples": samples,
        "steps": steps,
        "frechet": metrics.frechet_distance(metrics.feature_stats(drawn), reference),
        "kernel": metrics.kernel_distance(drawn, bench.reference_features),
        "floor_frechet": metrics.frechet_distance(metrics.feature_stats(real), reference),
        "floor_kernel": metrics.kernel_distance(real, bench.reference_features),
        "seed": seed,
        "remark": remark,
        "protocol": bench.protocol_record | {"features": dict(FEATURE_PROTOCOL)},
        "weights_sha256": bench.dense_sha256,
        "system": measure.system_info(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    write_grid(folder / "samples.png", images[:64], 8)
    _draw_loss(log, folder / "loss.png")
    journal.write_text(folder / "card.json", json.dumps(card, indent=1, sort_keys=True) + "\n")
    describes = card["describes"]
    shown = card | {"describes": describes[0].upper() + describes[1:], "macs": card["macs"] / 1e6}
    journal.write_text(folder / "README.md", CARD.format(**shown))
    typer.echo(f"Frechet distance {card['frechet']:.1f}, floor {card['floor_frechet']:.1f}")


def _draw_loss(log: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.plot([r["images"] / 1000 for r in log], [r["loss"] for r in log], color="#2166ac")
    axes.set(xlabel="thousand images seen", ylabel="training loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
