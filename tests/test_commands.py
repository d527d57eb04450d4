"""The command that stands in every method's file and on its page does what it says."""

from __future__ import annotations

import dataclasses
import shlex

import pytest
import torch

from kb import cards
from methods import registry
from methods.harness import compare
from tests.harness import tiny

# Less work for the same decisions: what may be set without another answer to "is this accepted".
CHEAP = {
    "batch_size": 4,
    "stride": 250,
    "timesteps": 1,
    "prompts": 4,
    "epochs": 1,
    "judged": 1,
    "robust_steps": 1,
    "between_steps": 1,
    "block_steps": 30,
    "retrain_steps": 1,
}
FEW_STEPS = {"ecodiff": 2, "finetune": 1, "distill": 1, "sparsedm": 2}  # optimizer or sampling
TINY = {"fashion_unet": "many_heads", "fashion_dit": "dit", "fashion_t2i": "t2i"}


def asked(name: str) -> tuple[registry.Recipe, str]:
    """The recipe and the task of a method's command, parsed as the command line does."""
    words = shlex.split(cards.command(name, registry.describe(name).card))
    assert words[:4] == ["python", "-m", "methods", "run"]
    task = words[words.index("--task") + 1]
    methods = words[4 : words.index("--task")]
    assignments = [word for word in words[words.index("--task") + 2 :] if word != "--set"]
    recipe = registry.build_recipe(methods, assignments)
    registry.check_task(task, methods)
    return recipe, task


@pytest.mark.parametrize("name", registry.names())
def test_the_file_says_under_expect_what_the_page_prints(name: str) -> None:
    doc = " ".join((registry.load(name).__doc__ or "").split())
    expected = doc[doc.index("Expect: ") :]
    assert f"`{cards.command(name, registry.describe(name).card)}`" in expected


@pytest.mark.parametrize("name", registry.names())
def test_the_command_is_a_row_of_the_standard_comparison(name: str) -> None:
    recipe, task = asked(name)
    standard = {
        registry.slug(r) for sweep in compare.standard_sweeps(task) for r in sweep.recipes()
    }
    assert registry.slug(recipe) in standard


@pytest.mark.parametrize(
    ("name", "task"), [(m.name, task) for m in registry.methods() for task in m.card["tasks"]]
)
def test_the_command_is_accepted(name: str, task: str) -> None:
    recipe, _ = asked(name)
    base = tiny.pipeline(TINY[task]) if task == "fashion_unet" else tiny.conditional(TINY[task])
    if task == "fashion_t2i" and name != "bk_sdm":  # whose list asks for two pairs a stage
        base = dataclasses.replace(base, denoiser=tiny.text_unet(layers=1))
    around, pipe = tiny.task(base), base.private_copy()
    for stage in recipe:
        changes = {key: value for key, value in CHEAP.items() if key in stage.settings}
        if stage.method in FEW_STEPS:
            changes["steps"] = FEW_STEPS[stage.method]
        module = registry.load(stage.method)
        config = dataclasses.replace(module.Config(**stage.settings), **changes)
        pipe, _ = module.compress(pipe, around, config)
    assert all(torch.isfinite(p).all() for p in pipe.denoiser.parameters())
    dense = sum(p.numel() for p in base.denoiser.parameters())
    left = sum(int(p.count_nonzero()) for p in pipe.denoiser.parameters())
    assert (left < dense) == (name != "dense")


def test_what_is_a_reconstruction_is_known_from_its_card() -> None:
    known = {method.name for method in registry.methods() if method.reconstruction}
    assert known == cards.reconstructions() == {"smaller_faster_sd"}
    assert registry.describe("smaller_faster_sd").label == "smaller_faster_sd (reconstruction)"


def test_a_card_with_a_misspelt_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHOD_CARD", registry._METHOD_CARD - {"reconstruction"})
    registry.describe.cache_clear()
    with pytest.raises(ValueError, match="CARD holds reconstruction; known: granularity"):
        registry.describe("smaller_faster_sd")
    registry.describe.cache_clear()
