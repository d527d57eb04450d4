"""Methods read from their source, and settings parsed from text."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from methods import registry
from methods.registry import Setting, Stage


def test_every_config_is_read_as_python_builds_it() -> None:
    for method in registry.methods():
        config = registry.load(method.name).Config
        names = [field.name for field in dataclasses.fields(config)]
        assert [setting.name for setting in method.settings] == names
        assert dataclasses.asdict(config()) == method.defaults
        for setting in method.settings:
            assert registry.check(method, setting, setting.default) == setting.default


def test_reading_methods_imports_no_torch() -> None:
    code = "import sys, methods.registry as r; r.methods(); print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_a_literal_is_found_through_an_import() -> None:
    rule = registry.describe("diff_pruning").setting("rule")
    assert rule == Setting(
        "rule",
        "choice",
        "within",
        'equal counts inside GroupNorm groups, or "whole" groups',
        choices=("within", "whole"),
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("magnitude.ratio=0.3", 0.3),
        ("magnitude.ratio=none", None),
        ("magnitude.p=1", 1),
        ("magnitude.unit=weight", "weight"),
    ],
)
def test_values_follow_the_annotation(text: str, value: object) -> None:
    stage = registry.build_recipe(["magnitude"], [text])[0]
    found = stage.settings[text.split("=")[0].split(".")[1]]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("magnitude.ratio=1.7", ["magnitude.ratio", "[0, 1)", "1.7"]),
        ("magnitude.ratio=nan", ["magnitude.ratio", "nan"]),
        ("magnitude.ratio=-inf", ["magnitude.ratio", "-inf"]),
        ("magnitude.ratio=1", ["[0, 1)"]),
        ("magnitude.macs=0", ["(0, 1]"]),
        ("magnitude.ratio=a lot", ["a number", "a lot"]),
        ("magnitude.p=1.5", ["magnitude.p", "whole number"]),
        ("magnitude.unit=row", ["channel, weight"]),
        ("magnitude.ratoi=0.3", ["did you mean ratio?", "macs"]),
        ("magnitud.ratio=0.3", ["did you mean magnitude?"]),
        ("finetune.steps=3", ["finetune", "not among the methods"]),
        ("magnitude.ratio", ["METHOD.KEY=VALUE"]),
        ("ratio=0.3", ["METHOD.KEY=VALUE"]),
    ],
)
def test_bad_settings_are_refused_in_one_line(text: str, names: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        registry.build_recipe(["magnitude"], [text])
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="given twice"):
        registry.build_recipe(["magnitude"], ["magnitude.p=1", "magnitude.p=2"])


def test_dense_has_nothing_to_set() -> None:
    with pytest.raises(ValueError, match="dense has nothing to set"):
        registry.build_recipe(["dense"], ["dense.ratio=0.3"])


def test_slug_names_what_differs_and_the_steps() -> None:
    recipe = (Stage.of("diff_pruning", macs=0.75), Stage.of("finetune"))
    assert registry.slug(recipe) == "diff_pruning-macs0.75+finetune-steps150"
    other = (Stage.of("diff_pruning", macs=0.75, threshold=0.1),)
    assert registry.slug(other) == "diff_pruning-macs0.75-threshold0.1"


def test_slugs_are_safe_file_names_and_stay_apart() -> None:
    rates = [1e-5, 1e-6, 2e-5, 0.5]
    slugs = {registry.slug((Stage.of("finetune", learning_rate=rate),)) for rate in rates}
    assert len(slugs) == len(rates)
    assert all(set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789._+-") for slug in slugs)


def test_arguments_ask_for_the_same_recipe_again() -> None:
    recipe = (Stage.of("magnitude", ratio=0.3, unit="weight"), Stage.of("finetune", steps=7))
    words = registry.arguments(recipe)
    split = words.index("--set")
    assignments = [word for word in words[split:] if word != "--set"]
    assert registry.build_recipe(words[:split], assignments) == recipe


def test_unknown_task_and_method_name_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="did you mean fashion_unet"):
        registry.check_task("fashion_unit", ["dense"])
    with pytest.raises(ValueError, match="did you mean diff_pruning"):
        registry.describe("diffpruning")
