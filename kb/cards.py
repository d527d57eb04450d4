"""What a method file says about itself in its CARD, read without running it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

METHODS = Path(__file__).resolve().parents[1] / "methods"
RECONSTRUCTION = "(reconstruction)"  # stands behind a method that is built from less than its paper


def card_of(module: ast.Module) -> Mapping[str, Any]:
    """The literal CARD of a module; empty where there is none.

    Raises:
        ValueError: `CARD` is more than plain data.
    """
    for node in module.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["CARD"]:
            card: Mapping[str, Any] = ast.literal_eval(node.value)
            return card
    return {}


@cache
def reconstructions(folder: Path = METHODS) -> frozenset[str]:
    """Names of the methods in `folder` whose CARD says `reconstruction`."""
    cards = {
        path.stem: card_of(ast.parse(path.read_text(encoding="utf-8")))
        for path in folder.glob("*.py")
    }
    return frozenset(name for name, card in cards.items() if card.get("reconstruction"))


def label(name: str, card: Mapping[str, Any]) -> str:
    """A method's name as it is shown: a reconstruction says so."""
    return f"{name} {RECONSTRUCTION}" if card.get("reconstruction") else name


def command(name: str, card: Mapping[str, Any]) -> str:
    """The command that tries a method: CARD's `recipe` and `try`, on the last of its tasks."""
    words = ["python -m methods run", *card.get("recipe", (name,))]
    words += ["--task", card["tasks"][-1]]
    return " ".join(words + [f"--set {assignment}" for assignment in card.get("try", ())])
