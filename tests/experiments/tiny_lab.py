"""Experiments at tiny size: random models of the real classes in place of the trained bases."""

from __future__ import annotations

from dataclasses import dataclass

from methods.harness.experiment import Lab
from methods.harness.pipeline import Pipeline, Task
from tests.harness import tiny


@dataclass
class TinyBench:
    """The part of a Bench that needs neither shipped weights nor images."""

    task: str
    dense: Pipeline

    def task_at(self, seed: int) -> Task:
        return tiny.task(self.dense, seed)


def lab(seeds=(0, 1)) -> Lab:
    """Both conditional bases, tiny."""
    benches = {
        "fashion_dit": TinyBench("fashion_dit", tiny.conditional("dit")),
        "fashion_t2i": TinyBench("fashion_t2i", tiny.conditional("t2i")),
    }
    return Lab(seeds=seeds, used=benches)
