"""Do a CPU and a GPU give the same figures, so that their rows may share a table?

The same model, noise and requests are drawn in bf16 on both devices; noise is made on the CPU
everywhere. Devices sum in another order, so images differ in the last bits that bf16 keeps.

Expect: `python -m methods experiment device_agreement --device cuda`; refused without a GPU, and
not run yet, so its time is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean, stdev

from methods import registry
from methods.harness.experiment import Column, Finding, Lab, Verdict, paired
from methods.harness.run import Bench

CARD = {
    "methods": ["dense", "random_pruning"],
    "task": "fashion_t2i",
    "bar": "Fréchet distances of both devices differ by less than a quarter of the seeds' spread",
    "source": "the rule of this harness that only figures of one protocol share a table",
}


@dataclass(frozen=True)
class Config:
    """Few images are enough: both devices draw the same ones."""

    images: int = 200
    macs: float = 0.75  # MACs left of the pruned model


def investigate(lab: Lab, config: Config) -> Finding:
    """Compare figure by figure.

    Raises:
        ValueError: the lab has no GPU, or fewer than two seeds.
    """
    if not lab.device.startswith("cuda"):
        raise ValueError("device_agreement compares a GPU with the CPU: run it with --device cuda")
    protocol = replace(lab.protocol, samples=config.images)
    benches = {
        device: Bench("fashion_t2i", protocol, device=device, report=lab.report)
        for device in ("cpu", lab.device)
    }
    size = f"random_pruning.macs={config.macs}"
    recipes = {
        "dense": registry.build_recipe(["dense"]),
        "random_pruning": registry.build_recipe(["random_pruning"], [size]),
    }
    rows = []
    for name, recipe in recipes.items():
        for seed in lab.seeds:
            found = {
                device: bench.quality(bench.compress(recipe, seed)[0], seed)
                for device, bench in benches.items()
            }
            (here, cpu), (there, gpu) = found["cpu"], found[lab.device]
            rows.append(
                {
                    "model": name,
                    "seed": seed,
                    "cpu": cpu["frechet"],
                    "gpu": gpu["frechet"],
                    "cpu_agreement": cpu["agreement"]["all"],
                    "gpu_agreement": gpu["agreement"]["all"],
                    "mse": float((here - there).square().mean()),
                }
            )
    answers, met = [], []
    for name in recipes:
        own = [row for row in rows if row["model"] == name]
        difference = paired([row["gpu"] for row in own], [row["cpu"] for row in own])
        spread = stdev(row["cpu"] for row in own)
        apart = fmean(abs(float(row["gpu"]) - float(row["cpu"])) for row in own)
        met.append(apart < spread / 4)
        answers.append(
            f"{name}: the GPU's Fréchet distance less the CPU's is {difference}, {apart:.3g} on "
            f"average without sign; over seeds the CPU's has a standard deviation of {spread:.3g}"
        )
    pixels = fmean(row["mse"] for row in rows)
    columns = (
        Column("model", "model"),
        Column("seed", "seed"),
        Column("cpu", "Fréchet, CPU", 1),
        Column("gpu", "Fréchet, GPU", 1),
        Column("cpu_agreement", "as asked, CPU", 3),
        Column("gpu_agreement", "as asked, GPU", 3),
        Column("mse", "MSE between images", 6),
    )
    verdict: Verdict = "shown" if all(met) else "in part" if any(met) else "not shown"
    far = [name for name, near in zip(recipes, met, strict=True) if not near]
    why = (
        f"the devices lie further apart than a quarter of the spread: {', '.join(far)}"
        if far
        else ""
    )
    answer = "; ".join(answers) + f". Images of the devices differ by an MSE of {pixels:.2g}."
    return Finding(verdict, answer, columns, tuple(rows), why)
