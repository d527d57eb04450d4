"""A pruned model as data: base config, the edits that shaped it, and its tensors."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from .journal import write_bytes


def write_tensors(path: Path, tensors: dict[str, Tensor], note: dict[str, str]) -> None:
    """Write a safetensors file atomically, with a few strings of metadata."""
    write_bytes(path, save({k: v.contiguous() for k, v in tensors.items()}, metadata=note))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
