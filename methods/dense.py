"""Leave the model as it is: the row that every other row is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from .harness.pipeline import Notes, Pipeline, Task

CARD = {
    "paper": None,
    "granularity": "structured",
    "unit": "channel",
    "role": "baseline",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
}


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Return the pipeline untouched."""
    return pipe, {}
