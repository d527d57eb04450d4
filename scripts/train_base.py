"""Train a shipped base from scratch; interrupted runs go on where they stopped."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from methods.harness import bases, journal, train, zoo
from methods.harness.checkpoint import read_tensors, write_tensors
from methods.harness.pipeline import noised_batches


def main(
    name: Annotated[str, typer.Argument(help="one of the shipped bases")],
    steps: Annotated[int, typer.Option(help="optimizer steps in all")] = 5_000,
    batch_size: int = 64,
    learning_rate: float = 6e-4,
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice")] = 0,
    channels_last: Annotated[bool, typer.Option(help="memory layout of the weights")] = True,
    device: str = "cpu",
    save_every: Annotated[int, typer.Option(help="optimizer steps between saves")] = 250,
    state: Annotated[Path | None, typer.Option(help="resumable state (safetensors)")] = None,
    log: Annotated[Path | None, typer.Option(help="training log (JSON lines)")] = None,
) -> None:
    """Keep the state in build/train/NAME and the log in models/NAME unless told otherwise.

    scripts/base_card.py turns the finished state into the shipped pipeline directory.
    """
    if name not in zoo.BASES:
        raise typer.BadParameter(f"unknown base {name!r}; known: {', '.join(zoo.BASES)}")
    if threads:
        torch.set_num_threads(threads)
    recipe = train.Recipe(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        channels_last=channels_last,
    )
    state_path = state or Path("build/train") / name / "state.safetensors"
    log_path = log or zoo.BASES[name].folder / "training_log.jsonl"

    torch.manual_seed(seed)
    pipe = bases.untrained(name).to(device)
    model = pipe.denoiser
    start, spent, ema, optimizer_state = 0, 0.0, None, None
    if state_path.exists():
        tensors, note = read_tensors(state_path)
        start = int(note["step"])
        split = {
            prefix: {
                key.removeprefix(f"{prefix}/"): value.to(device)
                for key, value in tensors.items()
                if key.startswith(f"{prefix}/")
            }
            for prefix in ("model", "ema", "optimizer")
        }
        train.load_weights(model, split["model"])
        ema, optimizer_state = split["ema"], split["optimizer"]
        records = [record for record in journal.read(log_path) if record["step"] <= start]
        spent = records[-1]["seconds"] if records else 0.0
        journal.rewrite(log_path, records)
    else:
        journal.rewrite(log_path, [])

    batches = noised_batches(pipe, bases.splits(name).train, batch_size, seed, start)
    began, window = time.monotonic(), []
    for step in train.train(
        model, batches, recipe, start=start, optimizer_state=optimizer_state, ema=ema
    ):
        window.append(step.loss)
        if step.index % 50 == 0 or step.index == steps:
            record = {
                "step": step.index,
                "images": step.images,
                "loss": round(sum(window) / len(window), 6),
                "learning_rate": step.learning_rate,
                "seconds": round(spent + time.monotonic() - began, 1),
            }
            journal.append(log_path, record)
            typer.echo(f"{record}")
            window.clear()
        if step.index % save_every == 0 or step.index == steps:
            write_tensors(
                state_path,
                {f"model/{k}": v for k, v in train.weights(step.model).items()}
                | {f"ema/{k}": v for k, v in step.ema.items()}
                | {f"optimizer/{k}": v for k, v in train.optimizer_tensors(step.optimizer).items()},
                {"step": str(step.index)},
            )


if __name__ == "__main__":
    typer.run(main)
