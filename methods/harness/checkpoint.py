"""A pruned model as data: base config, the edits that shaped it, and its tensors.

A folder holds `config.json` (the base architecture, as diffusers writes it), `pruning.json`
(what was cut, by which method, from which base), `scheduler_config.json` and
`model.safetensors`. Loading builds the base on the meta device, replays the edits and then
demands every tensor, by name, shape and dtype. Nothing is unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from . import zoo
from .journal import write_bytes, write_text
from .pipeline import Pipeline
from .surgery import replay

FORMAT = 1
_CLASSES: dict[str, type[nn.Module]] = {"UNet2DModel": UNet2DModel}
_MAX_JSON_BYTES = 64 * 1024 * 1024


def write_tensors(path: Path, tensors: dict[str, Tensor], note: dict[str, str]) -> None:
    """Write a safetensors file atomically, with a few strings of metadata."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(flat, metadata=note))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        ValueError: the file is damaged or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error


def save_pruned(pipe: Pipeline, folder: Path, base: str, notes: dict[str, Any]) -> None:
    """Write the folder; `base` names where the architecture came from, `notes` is JSON."""
    state = pipe.denoiser.state_dict()
    config = _architecture(pipe.denoiser)
    dense = dict(_build(config).state_dict())
    record = {
        "format": FORMAT,
        "base": base,
        "steps": pipe.steps,
        "edits": list(pipe.edits),
        "shapes": {
            name: list(tensor.shape)
            for name, tensor in state.items()
            if tensor.shape != dense[name].shape
        },
        "notes": notes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    scheduler = _plain_json(pipe.scheduler.config, type(pipe.scheduler).__name__)
    write_text(
        folder / "scheduler_config.json", json.dumps(scheduler, indent=2, sort_keys=True) + "\n"
    )
    write_tensors(folder / "model.safetensors", state, {})
    # Last: a folder without it is not a saved model.
    write_text(folder / "pruning.json", json.dumps(record, sort_keys=True) + "\n")


def load_pruned(folder: Path) -> Pipeline:
    """Bring a saved model back, bit for bit.

    Raises:
        FileNotFoundError: the folder or one of its files is not there.
        ValueError: a file is damaged, or tensors and edits do not fit the architecture.
    """
    record = _read_json(folder, "pruning.json")
    config = _read_json(folder, "config.json")
    if record.get("format") != FORMAT:
        raise ValueError(f"{folder}/pruning.json: format {record.get('format')!r}, not {FORMAT}")
    edits, shapes, steps = record.get("edits"), record.get("shapes"), record.get("steps")
    if not isinstance(edits, list) or not isinstance(shapes, dict) or type(steps) is not int:
        raise ValueError(f"{folder}/pruning.json: edits, shapes or steps is missing")
    try:
        model = _build(config)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"{folder}/config.json: {error}") from error
    try:
        replay(model, edits)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder}/pruning.json: {error}") from error
    for name, tensor in model.state_dict().items():
        if name in shapes and list(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{folder}/pruning.json: {name} is recorded as {shapes[name]}, "
                f"the edits give {list(tensor.shape)}"
            )
    _fill(model, folder / "model.safetensors")
    scheduler = _scheduler(_read_json(folder, "scheduler_config.json"), folder)
    return Pipeline(denoiser=model, scheduler=scheduler, steps=steps, edits=tuple(edits))


def load_base(source: str) -> Pipeline:
    """A shipped base by name, a saved model or pipeline folder, or a hub id (safetensors only).

    Raises:
        FileNotFoundError, ValueError: as `load_pruned`; a name that is none of these.
    """
    if source in zoo.BASES:
        return _load_directory(zoo.BASES[source].folder)
    folder = Path(source)
    if folder.is_dir():
        return (
            load_pruned(folder) if (folder / "pruning.json").exists() else _load_directory(folder)
        )
    if source.count("/") == 1 and not source.startswith((".", "/")):
        return _load_hub(source)
    raise FileNotFoundError(
        f"no model {source!r}: not a folder, not a hub id (owner/name), "
        f"not a shipped base ({', '.join(zoo.BASES)})"
    )


def save_base(model: nn.Module, scheduler: DDIMScheduler, folder: Path) -> None:
    """Write a dense base as the pipeline directory that diffusers' DDIMPipeline loads."""
    from diffusers import DDIMPipeline

    DDIMPipeline(unet=model, scheduler=scheduler).save_pretrained(folder)


def _load_directory(folder: Path) -> Pipeline:
    """A dense pipeline directory (unet/ and scheduler/)."""
    config = _read_json(folder / "unet", "config.json")
    try:
        model = _build(config)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"{folder}/unet/config.json: {error}") from error
    _fill(model, folder / "unet" / "diffusion_pytorch_model.safetensors")
    scheduler = _scheduler(_read_json(folder / "scheduler", "scheduler_config.json"), folder)
    return Pipeline(denoiser=model, scheduler=scheduler)


def _load_hub(repository: str) -> Pipeline:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        model = UNet2DModel.from_pretrained(repository, use_safetensors=True)
        try:
            scheduler = DDIMScheduler.from_pretrained(repository, subfolder="scheduler")
        except OSError:
            scheduler = DDIMScheduler.from_pretrained(repository)
    except (OSError, HfHubHTTPError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"hub model {repository!r} cannot be loaded: {first}") from error
    return Pipeline(denoiser=model.eval(), scheduler=scheduler)


def _architecture(model: nn.Module) -> dict[str, Any]:
    name = type(model).__name__
    if name not in _CLASSES:
        raise ValueError(f"cannot save a {name}; known: {', '.join(_CLASSES)}")
    return _plain_json(model.config, name)


def _plain_json(config: Any, class_name: str) -> dict[str, Any]:
    """What diffusers writes into config.json, without the private and the derived keys."""
    kept = {k: v for k, v in dict(config).items() if not k.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(kept | {"_class_name": class_name}))
    return plain


def _build(config: dict[str, Any]) -> nn.Module:
    """The dense architecture on the meta device."""
    name = config.get("_class_name")
    if name not in _CLASSES:
        raise ValueError(f"unknown _class_name {name!r}; known: {', '.join(_CLASSES)}")
    with torch.device("meta"):
        model: nn.Module = _CLASSES[name].from_config(config)  # type: ignore[attr-defined]
    return model.eval()


def _scheduler(config: dict[str, Any], folder: Path) -> DDIMScheduler:
    try:
        return DDIMScheduler.from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{folder}/scheduler_config.json: {error}") from error


def _fill(model: nn.Module, path: Path) -> None:
    """Give a meta model its tensors; every one must be there, fit, and nothing be left over."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    tensors, _ = read_tensors(path)
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise ValueError(f"{path}: tensor {name} is missing")
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: tensor {name} has shape {list(tensors[name].shape)}, "
                f"expected {list(tensor.shape)}"
            )
    left = sorted(tensors.keys() - expected.keys())
    if left:
        raise ValueError(f"{path}: unexpected tensor {left[0]}")
    model.load_state_dict(tensors, strict=True, assign=True)
    model.requires_grad_(True)
    model.eval()


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {folder} does not exist")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: not a saved model")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path}: larger than {_MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value
