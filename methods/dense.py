"""Leave the model as it is: the row that every other row is compared with.

Its images start from the noise and answer the requests of all other rows of the seed, in the same
number of sampling steps and the same precision; what differs between seeds is that noise. It is
sampled once for each seed. Its speed-up is the dense model timed against itself: how far it lies
from 1 is what the timing cannot resolve.

Expect: `python -m methods run dense --task fashion_t2i`. It is a row of `python -m methods standard
--task fashion_t2i`, whose records hold its time, machine, cost and scores with their spread.
"""

from __future__ import annotations

from dataclasses import dataclass

from .harness.pipeline import Notes, Pipeline, Task

CARD = {
    "paper": None,
    "granularity": None,
    "unit": None,
    "role": "reference",
    "tasks": ["fashion_unet", "fashion_dit", "fashion_t2i"],
}


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
    """Return the pipeline untouched."""
    return pipe, {}
