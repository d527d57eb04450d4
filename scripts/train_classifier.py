"""Train the classifier that judges generated garments, on real photographs alone."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from methods.harness.alignment import (
    CLASSIFIER,
    WEIGHTS,
    GarmentClassifier,
    as_colour,
    classify,
    colours,
)
from methods.harness.checkpoint import write_tensors
from methods.harness.data import ImageSet, fashion_mnist
from methods.harness.garments import requests, tint, tinted_garments
from methods.harness.journal import write_text
from methods.harness.pipeline import seeded
from methods.harness.run import made_now
from methods.harness.train import Recipe, learning_rate

CARD = """---
license: mit
datasets:
- zalando-datasets/fashion_mnist
---

# garment_classifier

Convolutional network that tells the ten garments of Fashion-MNIST apart, in 32x32 colour pixels.
{params:,} parameters. It judges whether a generated image shows what was asked for
(`methods/harness/alignment.py`).

## Data

Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747, MIT licence), 58,000 of the 60,000
training images: each white on black or in any two colours, either half of the time, some batches
mirrored, all moved by up to 2 pixels. It never saw a generated image.

## Recipe

`python scripts/train_classifier.py --steps {steps} --batch-size {batch_size}`

Cross-entropy, AdamW, {steps:,} optimizer steps of {batch_size} images, bf16 autocast;
{minutes:.0f} minutes. Date: {date}. Seed: {seed}. Commit: {commit}. Machine: `card.json`.

## Quality

On the {images:,} test images, which were never trained on:

| what is told | right |
| --- | --- |
| garment, white on black | {accuracy_grey} |
| garment, tinted | {accuracy_tinted} |
| colour of the garment, by pixels | {colour_accuracy} |
| colour of the background, by pixels | {background_accuracy} |

The colours are no work of the network: `colours` in `methods/harness/alignment.py` reads them off.

## Use

```python
from methods.harness.alignment import classify, load_classifier

probabilities = classify(load_classifier(), images)  # (B, 3, 32, 32) or (B, 1, 28, 28) -> (B, 10)
```

## Limits

It errs on photographs as often as the table says, so that agreement as high as that of the test
photographs is as good as it can tell. Generated images can agree more often: those that are typical
of their class are easier than photographs, which does not make them better images.

Licence: MIT, as the data.
"""


def main(
    steps: Annotated[int, typer.Option(help="optimizer steps")] = 1_500,
    batch_size: int = 128,
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice")] = 0,
    device: str = "cpu",
    out: Annotated[Path, typer.Option()] = CLASSIFIER,
    words: Annotated[
        bool, typer.Option(help="README.md again from card.json; no training")
    ] = False,
) -> None:
    """Random tints and white on black, mirrored and shifted; write weights and measured accuracy.

    The generated images it will judge were made by models that it never saw, and it never saw
    theirs: it learns from the 58,000 training photographs only.
    """
    if words:
        write_text(out / "README.md", readme(out))
        return
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    train = fashion_mnist().train
    assert isinstance(train, ImageSet)
    model = GarmentClassifier().to(device)
    recipe = Recipe(steps=steps, batch_size=batch_size, learning_rate=2e-3, decay_from=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    began = time.monotonic()
    for step in range(steps):
        draw = seeded(seed, f"classifier/{step}")
        index = torch.randint(len(train), (batch_size,), generator=draw)
        images = _varied(train.images[index], draw).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), train.labels[index].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            typer.echo(f"{step + 1} loss {loss.item():.4f} {time.monotonic() - began:.0f} s")

    model.eval()
    grey, tinted = fashion_mnist().reference, tinted_garments().reference
    everything = torch.arange(len(grey))
    photographs = grey.take(everything)
    in_colour = tinted.take(everything)
    asked = [requests()[int(row)] for row in tinted.labels]
    garment, background = colours(in_colour)
    note = {
        "accuracy_grey": _accuracy(model, photographs, grey.labels),
        "accuracy_tinted": _accuracy(
            model, in_colour, torch.tensor([request.garment for request in asked])
        ),
        "colour_accuracy": _equal(garment, torch.tensor([r.colour for r in asked])),
        "background_accuracy": _equal(background, torch.tensor([r.background for r in asked])),
        "images": len(grey),
        "steps": steps,
        "batch_size": batch_size,
        "seconds": round(time.monotonic() - began, 1),
        **made_now(seed),
    }
    write_tensors(out / WEIGHTS, model.state_dict(), {})
    write_text(out / "card.json", json.dumps(note, indent=1, sort_keys=True) + "\n")
    write_text(out / "README.md", readme(out))
    typer.echo(f"{note}")


def readme(folder: Path) -> str:
    """The model card in words, from card.json."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    shares = ("accuracy_grey", "accuracy_tinted", "colour_accuracy", "background_accuracy")
    shown = {name: f"{100 * card[name]:.1f} %" for name in shares}
    params = sum(parameter.numel() for parameter in GarmentClassifier().parameters())
    return CARD.format(**card | shown | {"params": params, "minutes": card["seconds"] / 60})


def _varied(grey: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Half of the batch in any two colours, half white on black; mirrored, moved by <= 2 pixels."""
    count = len(grey)
    pair = torch.rand(2, count, 3, generator=draw)
    in_colour = tint(grey, pair[0], pair[1])
    plain = as_colour(grey)
    chosen = torch.rand(count, generator=draw) < 0.5
    images = torch.where(chosen[:, None, None, None], in_colour, plain)
    if torch.rand(1, generator=draw) < 0.5:
        images = images.flip(3)
    shift = torch.randint(-2, 3, (2,), generator=draw).tolist()
    return images.roll(shift, dims=(2, 3))


def _accuracy(model: GarmentClassifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    return _equal(classify(model, images).argmax(dim=1), labels)


def _equal(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return round(float((found == wanted).float().mean()), 4)


if __name__ == "__main__":
    typer.run(main)
