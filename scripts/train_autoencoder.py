"""Train the small autoencoder of the text-to-image base on tinted garments; a few minutes."""

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

from methods.harness import bases, zoo
from methods.harness.garments import COLOURS, SIZE, TintedSet, tint, tinted_garments
from methods.harness.journal import write_text
from methods.harness.pipeline import seeded
from methods.harness.run import made_now
from methods.harness.train import Recipe, learning_rate

KL_WEIGHT = 1e-6  # as Stable Diffusion's autoencoder (Rombach et al. 2022, appendix G)


def main(
    steps: Annotated[int, typer.Option(help="optimizer steps")] = 700,
    batch_size: int = 64,
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice")] = 0,
    device: str = "cpu",
    out: Annotated[Path, typer.Option()] = zoo.MODELS / "fashion_t2i" / "vae",
) -> None:
    """Minimise the mean absolute error plus a very small KL term; write a diffusers folder."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = bases.small_autoencoder().to(device)
    recipe = Recipe(steps=steps, batch_size=batch_size, learning_rate=2e-3, decay_from=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=recipe.betas)
    splits = tinted_garments()
    train = splits.train
    assert isinstance(train, TintedSet)
    palette = torch.tensor(list(COLOURS.values())) / 255
    began = time.monotonic()
    for step in range(steps):
        draw = seeded(seed, f"autoencoder/{step}")
        index = torch.randint(len(train), (batch_size,), generator=draw)
        # Any two palette colours: the autoencoder is to know colours, not captions.
        pairs = torch.randint(len(palette), (2, batch_size), generator=draw)
        images = tint(train.grey.images[index], palette[pairs[0]], palette[pairs[1]]).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            posterior = model.encode(images).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=draw).to(device)
            latents = posterior.mean + posterior.std * noise
            again = model.decode(latents, return_dict=False)[0]
        loss = F.l1_loss(again.float(), images) + KL_WEIGHT * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        optimizer.step()
        if (step + 1) % 50 == 0:
            typer.echo(f"{step + 1} loss {loss.item():.4f} {time.monotonic() - began:.0f} s")

    model.eval()
    with torch.no_grad():
        held_out = splits.reference.take(torch.arange(1000)).to(device)
        latents = model.encode(held_out).latent_dist.mode()
        error = (model.decode(latents).sample.clamp(-1, 1) - held_out).square().mean().item()
    model.register_to_config(scaling_factor=1 / latents.std().item(), sample_size=SIZE)
    model.save_pretrained(out, safe_serialization=True)
    note = {
        "steps": steps,
        "batch_size": batch_size,
        "reconstruction_mse": error,  # of 1000 held-out images, pixels in [-1, 1]
        "latent_channel_std": [round(v, 4) for v in latents.std((0, 2, 3)).tolist()],
        "seconds": round(time.monotonic() - began, 1),
        **made_now(seed),
    }
    write_text(out.parent / "autoencoder.json", json.dumps(note, indent=1) + "\n")
    typer.echo(f"{note}")


if __name__ == "__main__":
    typer.run(main)
