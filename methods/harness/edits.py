"""Repeating what was cut from a model on its freshly built architecture, to load it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .depth import drop_middle_of, drop_stage, drop_units, repeat_units
from .pipeline import Edit
from .surgery import cut_channels
from .width import cut_units, silence_layers


def replay(model: nn.Module, edits: Sequence[Edit], autoencoder: nn.Module | None = None) -> None:
    """Apply recorded edits in order, weights aside.

    Raises:
        ValueError: an edit is malformed, unknown, or does not fit the model.
    """
    for edit in edits:
        operation = _OPERATIONS.get(edit.get("op")) if isinstance(edit, dict) else None
        if operation is None:
            raise ValueError(f"unknown edit {str(edit)[:60]!r}")
        target: nn.Module | None = model
        if edit.get("part") == "autoencoder":
            target = autoencoder
        if target is None:
            raise ValueError("an edit of the autoencoder, but the folder holds none")
        operation(target, edit)


def _cut(model: nn.Module, edit: Edit) -> None:
    if not isinstance(edit.get("keep"), dict):
        raise ValueError("a cut without its kept channels (keep)")
    cut_channels(model, edit["keep"], edit.get("rule", ""))


def _drop(model: nn.Module, edit: Edit) -> None:
    drop_units(model, _names(edit, "units"), shortcuts=edit.get("shortcuts") is True)


def _repeat(model: nn.Module, edit: Edit) -> None:
    repeat_units(model, _names(edit, "units"))


def _silence(model: nn.Module, edit: Edit) -> None:
    silence_layers(model, _names(edit, "layers"))


def _width(model: nn.Module, edit: Edit) -> None:
    if not isinstance(edit.get("keep"), dict):
        raise ValueError("a width edit without its kept units (keep)")
    cut_units(model, edit["keep"])


def _names(edit: Edit, key: str) -> list[str]:
    names = edit.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"a {edit['op']} without its list of {key}")
    return names


_OPERATIONS: dict[Any, Callable[[nn.Module, Edit], None]] = {
    "cut": _cut,
    "drop": _drop,
    "drop_middle": lambda model, _: drop_middle_of(model),
    "drop_stage": lambda model, _: drop_stage(model),
    "repeat": _repeat,
    "silence": _silence,
    "width": _width,
}
