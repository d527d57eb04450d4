"""What methods there are and what can be set on them, read from their source without running it.

Nothing here imports torch, so that `python -m methods list` and every complaint about a misspelt
word are instant.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import io
import math
import re
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from kb import cards

FOLDER = Path(__file__).resolve().parent
EXPERIMENTS = FOLDER / "experiments"
_NOT_METHODS = {"__init__", "__main__", "registry"}
# What a method's CARD may hold: `try` are METHOD.KEY=VALUE that make its command a row of the
# standard comparison, `recipe` the methods of that command where it is not the method alone.
_METHOD_CARD = {"paper", "granularity", "unit", "role", "tasks"}
_METHOD_CARD |= {"try", "recipe", "known_as", "reconstruction"}
_EXPERIMENT_CARD = {"methods", "task", "bar", "source"}
_SCALARS = ("int", "float", "bool", "str")
# The two requests that all channel methods share; other limits are each method's own.
_RANGES = {"ratio": ("[0, 1)", 0.0, 1.0), "macs": ("(0, 1]", 0.0, 1.0)}

Settings = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One field of a method's Config."""

    name: str
    kind: str  # int, float, bool, str or choice
    default: Any
    comment: str
    optional: bool = False  # accepts none
    choices: tuple[Any, ...] = ()
    required: bool = False

    @property
    def accepts(self) -> str:
        """What may be written after the equals sign, in words."""
        if self.choices:
            words = "one of " + ", ".join(str(choice) for choice in self.choices)
        else:
            words = {
                "int": "a whole number",
                "float": "a number",
                "bool": "true or false",
                "str": "a text",
            }[self.kind]
            if self.name in _RANGES and self.kind == "float":
                words += f" in {_RANGES[self.name][0]}"
        return f"{words}, or none" if self.optional else words


@dataclass(frozen=True)
class Method:
    """A method file as its source describes it."""

    name: str
    describes: str
    card: Mapping[str, Any]
    settings: tuple[Setting, ...]

    @property
    def reconstruction(self) -> bool:
        """Built from less than the paper, which every page and table must say."""
        return bool(self.card.get("reconstruction"))

    @property
    def label(self) -> str:
        """The name as it is shown."""
        return cards.label(self.name, self.card)

    @property
    def defaults(self) -> Settings:
        """Every field with its default."""
        return {setting.name: setting.default for setting in self.settings}

    def setting(self, name: str) -> Setting:
        """The field `name`; ValueError with the valid names otherwise."""
        for setting in self.settings:
            if setting.name == name:
                return setting
        valid = [setting.name for setting in self.settings]
        if not valid:
            raise ValueError(f"{self.name} has nothing to set, so {self.name}.{name} is unknown")
        raise ValueError(unknown(f"setting {self.name}.{name}", name, valid))


@dataclass(frozen=True)
class Stage:
    """One method of a recipe with every field of its Config."""

    method: str
    settings: Settings

    @classmethod
    def of(cls, method: str, **changes: Any) -> Stage:
        """A stage with these fields changed from their defaults; ValueError for bad ones."""
        found = describe(method)
        settings = found.defaults
        for key, value in changes.items():
            settings[key] = check(found, found.setting(key), value)
        for setting in found.settings:
            if setting.required and setting.name not in changes:
                raise ValueError(
                    f"{method}.{setting.name} has no default: set it to {setting.accepts}"
                )
        return cls(method, settings)


Recipe = tuple[Stage, ...]


def unknown(what: str, given: str, valid: Iterable[str]) -> str:
    """One line: what is unknown, what may have been meant, what is valid."""
    names = list(valid)
    close = difflib.get_close_matches(given, names, n=2, cutoff=0.5)
    meant = f"; did you mean {' or '.join(close)}?" if close else ";"
    return f"unknown {what}{meant} valid: {', '.join(names)}"


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """Names of all methods, sorted."""
    stems = (path.stem for path in FOLDER.glob("*.py"))
    return tuple(sorted(stem for stem in stems if stem not in _NOT_METHODS))


def methods() -> tuple[Method, ...]:
    """All methods, sorted by name."""
    return tuple(describe(name) for name in names())


def tasks() -> tuple[str, ...]:
    """Tasks that at least one method names."""
    return tuple(sorted({task for method in methods() for task in method.card["tasks"]}))


def check_task(task: str, recipe_methods: Sequence[str]) -> None:
    """Raise ValueError for an unknown task or a method that does not handle it."""
    if task not in tasks():
        raise ValueError(unknown(f"task {task!r}", task, tasks()))
    for name in recipe_methods:
        card = describe(name).card
        if task not in card["tasks"]:
            raise ValueError(
                f"{name} does not handle task {task!r}; it handles {', '.join(card['tasks'])}"
            )


@lru_cache(maxsize=64)
def describe(name: str) -> Method:
    """Read one method file.

    Raises:
        ValueError: no such method, or the file lacks a docstring, a CARD or a Config.
    """
    if name not in names():
        raise ValueError(unknown(f"method {name!r}", name, names()))
    method = _read(FOLDER / f"{name}.py")
    if not isinstance(method.card.get("tasks"), list):
        raise ValueError(f"methods/{name}.py needs a CARD with a list of tasks")
    odd = sorted(method.card.keys() - _METHOD_CARD)
    if odd:
        known = ", ".join(sorted(_METHOD_CARD))
        raise ValueError(f"methods/{name}.py: CARD holds {', '.join(odd)}; known: {known}")
    return method


@lru_cache(maxsize=1)
def experiment_names() -> tuple[str, ...]:
    """Names of all experiments, sorted."""
    return tuple(sorted(p.stem for p in EXPERIMENTS.glob("*.py") if p.stem != "__init__"))


@lru_cache(maxsize=64)
def describe_experiment(name: str) -> Method:
    """Read one file of methods/experiments; its CARD names methods, task, bar and source.

    Raises:
        ValueError: no such experiment, or the file lacks what it must have.
    """
    if name not in experiment_names():
        raise ValueError(unknown(f"experiment {name!r}", name, experiment_names()))
    found = _read(EXPERIMENTS / f"{name}.py")
    if found.card.keys() != _EXPERIMENT_CARD:
        keys = ", ".join(sorted(_EXPERIMENT_CARD))
        raise ValueError(f"methods/experiments/{name}.py: CARD must hold exactly {keys}")
    return found


def load_experiment(name: str) -> ModuleType:
    """Import an experiment's module (and torch with it)."""
    describe_experiment(name)
    return importlib.import_module(f"methods.experiments.{name}")


def _read(path: Path) -> Method:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    shown = path.relative_to(FOLDER.parent)
    docstring = ast.get_docstring(tree)
    if not docstring:
        raise ValueError(f"{shown} has no docstring")
    card = _card(tree, shown)
    config = _class(tree, "Config")
    if config is None:
        raise ValueError(f"{shown} has no class Config")
    comments = _comments(source)
    fields = tuple(
        _setting(node, tree, path, comments)
        for node in config.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    )
    return Method(path.stem, docstring.splitlines()[0], card, fields)


def load(name: str) -> ModuleType:
    """Import a method's module (and torch with it)."""
    describe(name)
    return importlib.import_module(f"methods.{name}")


# --- settings --------------------------------------------------------------------------------


def parse_assignments(texts: Iterable[str], recipe_methods: Sequence[str]) -> dict[str, Settings]:
    """Turn `method.key=value` texts into checked settings by method.

    Raises:
        ValueError: malformed text, unknown method or key, a value of the wrong kind, or a method
            that is not part of the recipe.
    """
    found: dict[str, Settings] = {}
    for text in texts:
        name, key, value = _split(text, "METHOD.KEY=VALUE, such as magnitude.ratio=0.3")
        method = describe(name)
        if name not in recipe_methods:
            raise ValueError(
                f"--set {text!r}: {name} is not among the methods asked for: "
                f"{', '.join(recipe_methods)}"
            )
        setting = method.setting(key)
        if key in found.setdefault(name, {}):
            raise ValueError(f"--set {name}.{key} is given twice")
        found[name][key] = parse(method, setting, value)
    return found


def _split(text: str, form: str) -> tuple[str, str, str]:
    """(name, key, value) of `name.key=value`; ValueError that says which form is meant."""
    target, equals, value = text.partition("=")
    name, dot, key = target.strip().partition(".")
    if not (equals and dot and key):
        raise ValueError(f"--set {text!r}: write {form}")
    return name, key, value.strip()


def experiment_settings(experiment: Method, texts: Iterable[str]) -> Settings:
    """Every field of an experiment's Config, with `experiment.key=value` texts applied.

    Raises:
        ValueError: malformed text, another experiment's name, an unknown key, one given twice or
            a bad value.
    """
    form = f"{experiment.name}.KEY=VALUE"
    found: Settings = {}
    for text in texts:
        name, key, value = _split(text, form)
        if name != experiment.name:
            raise ValueError(f"--set {text!r}: write {form}")
        if key in found:
            raise ValueError(f"--set {name}.{key} is given twice")
        found[key] = parse(experiment, experiment.setting(key), value)
    return experiment.defaults | found


def parse(method: Method, setting: Setting, text: str) -> Any:
    """The value that `text` stands for; ValueError naming the field and what it accepts."""
    if setting.optional and text.lower() == "none":
        return None
    value: Any = text
    try:
        if setting.kind == "int":
            value = int(text)
        elif setting.kind == "float":
            value = float(text)
        elif setting.kind == "bool":
            value = {"true": True, "false": False}[text.lower()]
        elif setting.kind == "choice":
            value = {str(choice): choice for choice in setting.choices}[text]
    except (ValueError, KeyError):
        raise ValueError(_refusal(method, setting, text)) from None
    return check(method, setting, value)


def check(method: Method, setting: Setting, value: Any) -> Any:
    """The value itself if the field accepts it; ValueError otherwise."""
    if value is None and setting.optional:
        return None
    if setting.choices:
        good = any(value == choice and type(value) is type(choice) for choice in setting.choices)
    elif setting.kind == "float":
        good = type(value) in (int, float) and math.isfinite(value)
        if good and setting.name in _RANGES:
            interval, low, high = _RANGES[setting.name]
            good = low <= value <= high
            good = good and (value != low or interval[0] == "[")
            good = good and (value != high or interval[-1] == "]")
        if good:
            value = float(value)
    else:
        good = type(value).__name__ == setting.kind
    if not good:
        raise ValueError(_refusal(method, setting, value))
    return value


def _refusal(method: Method, setting: Setting, value: Any) -> str:
    return f"{method.name}.{setting.name} is {setting.accepts}, not {str(value)!r}"


# --- recipes ---------------------------------------------------------------------------------


def build_recipe(recipe_methods: Sequence[str], assignments: Iterable[str] = ()) -> Recipe:
    """A recipe of methods in order, with `method.key=value` texts applied to each of that name."""
    if not recipe_methods:
        raise ValueError(f"a recipe needs a method; valid: {', '.join(names())}")
    for name in recipe_methods:
        describe(name)
    changes = parse_assignments(assignments, recipe_methods)
    return tuple(Stage.of(name, **changes.get(name, {})) for name in recipe_methods)


def slug(recipe: Recipe) -> str:
    """The recipe as a folder name: methods, with what differs from the defaults.

    Optimizer steps are always written, since they are the first thing to tell two rows apart.
    """
    return "+".join(_stage_slug(stage) for stage in recipe)


def _stage_slug(stage: Stage) -> str:
    defaults = describe(stage.method).defaults
    parts = [stage.method]
    for key, value in stage.settings.items():
        if value != defaults.get(key) or key == "steps":
            parts.append(f"{key}{_word(value)}")
    return "-".join(parts)


def _word(value: Any) -> str:
    text = f"{value:.12g}" if isinstance(value, float) else str(value).lower()
    safe = re.sub(r"[^a-z0-9._]", "_", text)
    if safe != text or len(safe) > 40:
        safe = f"{safe[:24]}_{hashlib.sha256(str(value).encode()).hexdigest()[:8]}"
    return safe


def arguments(recipe: Recipe) -> list[str]:
    """The command-line arguments that ask for this recipe."""
    words = [stage.method for stage in recipe]
    for stage in recipe:
        defaults = describe(stage.method).defaults
        for key, value in stage.settings.items():
            if value != defaults.get(key):
                shown = f"{value:.12g}" if isinstance(value, float) else str(value)
                words += ["--set", f"{stage.method}.{key}={shown}"]
    return words


# --- reading the source ----------------------------------------------------------------------


def _card(tree: ast.Module, path: Path) -> Mapping[str, Any]:
    try:
        card = cards.card_of(tree)
    except ValueError:
        card = {}
    if not isinstance(card, dict) or not card:
        raise ValueError(f"{path} needs a literal CARD")
    return card


def _class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    return None


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            if any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                return node.value
        elif (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == name
        ):
            return node.value
    return None


def _comments(source: str) -> dict[int, str]:
    """Comment text by line number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _setting(
    node: ast.AnnAssign, tree: ast.Module, path: Path, comments: Mapping[int, str]
) -> Setting:
    assert isinstance(node.target, ast.Name)
    where = f"methods/{path.name}:{node.lineno}: Config.{node.target.id}"
    kind, optional, choices = _kind(node.annotation, tree, path, where)
    try:
        default = ast.literal_eval(node.value) if node.value is not None else None
    except ValueError as error:
        raise ValueError(f"{where}: the default must be a literal") from error
    return Setting(
        name=node.target.id,
        kind=kind,
        default=default,
        comment=comments.get(node.end_lineno or node.lineno, ""),
        optional=optional,
        choices=choices,
        required=node.value is None,
    )


def _kind(
    annotation: ast.expr, tree: ast.Module, path: Path, where: str
) -> tuple[str, bool, tuple[Any, ...]]:
    """(kind, accepts none, choices) of an annotation; names of Literals are looked up."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        sides = [annotation.left, annotation.right]
        kept = [s for s in sides if not (isinstance(s, ast.Constant) and s.value is None)]
        if len(kept) == 1:
            kind, _, choices = _kind(kept[0], tree, path, where)
            return kind, True, choices
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        if annotation.value.id == "Optional":
            kind, _, choices = _kind(annotation.slice, tree, path, where)
            return kind, True, choices
        if annotation.value.id == "Literal":
            values = ast.literal_eval(annotation.slice)
            return "choice", False, values if isinstance(values, tuple) else (values,)
    if isinstance(annotation, ast.Name):
        if annotation.id in _SCALARS:
            return annotation.id, False, ()
        alias = _alias(annotation.id, tree, path)
        if alias is not None:
            return _kind(alias[0], alias[1], alias[2], where)
    raise ValueError(
        f"{where}: {ast.unparse(annotation)} cannot be set from a command line; use int, float, "
        "bool, str, a Literal of them, or one of these with None"
    )


def _alias(name: str, tree: ast.Module, path: Path) -> tuple[ast.expr, ast.Module, Path] | None:
    """What a type alias stands for, here or in the module of the harness it is imported from."""
    value = _assigned(tree, name)
    if value is not None:
        return value, tree, path
    for node in tree.body:
        if not (isinstance(node, ast.ImportFrom) and node.level and node.module):
            continue
        for imported in node.names:
            if (imported.asname or imported.name) == name:
                folder = path.parents[node.level - 1]
                file = folder.joinpath(*node.module.split(".")).with_suffix(".py")
                if not file.is_file():
                    return None
                other = ast.parse(file.read_text(encoding="utf-8"))
                return _alias(imported.name, other, file)
    return None
