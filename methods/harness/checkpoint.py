"""A pruned model as data: base config, the edits that shaped it, and its tensors.

A folder holds `config.json` (the base architecture, as diffusers writes it), `pruning.json`
(what was cut, by which method, from which base), `scheduler_config.json` and
`model.safetensors`. A text-to-image model brings its `vae/`, `text_encoder/` and `tokenizer/`, so
that the folder samples by itself. Loading builds the base on the meta device, replays the edits
and then demands every tensor, by name, shape and dtype. Nothing is unpickled.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from . import bases, zoo
from .edits import replay
from .journal import write_bytes, write_text
from .pipeline import Conditioning, Pipeline
from .text import Text

FORMAT = 1
_CLASSES: dict[str, type[nn.Module]] = {
    model.__name__: model
    for model in (
        UNet2DModel,
        UNet2DConditionModel,
        DiTTransformer2DModel,
        SD3Transformer2DModel,
        FluxTransformer2DModel,
        AutoencoderKL,
    )
}
_DENOISERS = ("unet", "transformer")  # folder names in a diffusers pipeline directory
WEIGHTS = "diffusion_pytorch_model.safetensors"
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
    config = _architecture(pipe.denoiser)
    record = {
        "format": FORMAT,
        "base": base,
        "steps": pipe.steps,
        "guidance": pipe.guidance,
        "edits": list(pipe.edits),
        "shapes": _changed_shapes(pipe.denoiser, config),
        "notes": notes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    # Without it the folder is not a saved model: gone first and written last, so that an
    # interrupted save over an old model is no mixture of both.
    (folder / "pruning.json").unlink(missing_ok=True)
    for part in ("vae", "text_encoder", "tokenizer"):
        if (folder / part).is_dir():
            shutil.rmtree(folder / part)
    if pipe.autoencoder is not None:
        _save_autoencoder(pipe.autoencoder, folder / "vae")
    if pipe.text is not None:
        _save_text(pipe.text, folder)
    state = pipe.denoiser.state_dict()
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    scheduler = _plain_json(pipe.scheduler.config, type(pipe.scheduler).__name__)
    write_text(
        folder / "scheduler_config.json", json.dumps(scheduler, indent=2, sort_keys=True) + "\n"
    )
    write_tensors(folder / "model.safetensors", state, {})
    write_text(folder / "pruning.json", json.dumps(record, sort_keys=True) + "\n")


def load_pruned(folder: Path) -> Pipeline:
    """Bring a saved model back, bit for bit.

    Raises:
        FileNotFoundError: the folder or one of its files is not there.
        ValueError: a file is damaged, or tensors and edits do not fit the architecture.
    """
    record = _read_json(folder, "pruning.json")
    config = _read_json(folder, "config.json")
    autoencoder = None
    if record.get("format") != FORMAT:
        raise ValueError(f"{folder}/pruning.json: format {record.get('format')!r}, not {FORMAT}")
    edits, shapes, steps = record.get("edits"), record.get("shapes"), record.get("steps")
    if not isinstance(edits, list) or not isinstance(shapes, dict) or type(steps) is not int:
        raise ValueError(f"{folder}/pruning.json: edits, shapes or steps is missing")
    model = _empty(folder / "config.json", config)
    if (folder / "vae").is_dir():
        autoencoder = _empty(
            folder / "vae" / "config.json", _read_json(folder / "vae", "config.json")
        )
    try:
        replay(model, edits, autoencoder)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder}/pruning.json: {error}") from error
    for name, tensor in model.state_dict().items():
        if name in shapes and list(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{folder}/pruning.json: {name} is recorded as {shapes[name]}, "
                f"the edits give {list(tensor.shape)}"
            )
    _fill(model, folder / "model.safetensors")
    if autoencoder is not None:
        _fill(autoencoder, folder / "vae" / WEIGHTS)
        autoencoder.requires_grad_(False)
    text = _load_text(folder)
    return Pipeline(
        denoiser=model,
        scheduler=_scheduler(_read_json(folder, "scheduler_config.json"), folder),
        steps=steps,
        guidance=float(record.get("guidance", 1.0)),
        conditioning=_conditioning(model, text),
        autoencoder=autoencoder,
        text=text,
        edits=tuple(edits),
    )


def load_base(source: str) -> Pipeline:
    """A shipped base by name, a saved model or pipeline folder, or a hub id (safetensors only).

    Raises:
        FileNotFoundError, ValueError: as `load_pruned`; a name that is none of these.
    """
    if source in zoo.BASES:
        base = zoo.BASES[source]
        return replace(_load_directory(base.folder), guidance=base.guidance)
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


def save_base(pipe: Pipeline, folder: Path) -> None:
    """Write a dense base as a diffusers pipeline directory, in the precision of its weights.

    A U-Net alone becomes a DDIMPipeline, one with text a StableDiffusionPipeline. A DiT becomes
    `transformer/` and `scheduler/`: diffusers' DiTPipeline demands an autoencoder and hard-codes
    ImageNet's null label, so neither fits a model of pixels and ten classes.
    """
    from diffusers import DDIMPipeline, StableDiffusionPipeline

    if pipe.text is not None and pipe.autoencoder is not None:
        StableDiffusionPipeline(
            vae=pipe.autoencoder,
            text_encoder=pipe.text.encoder,
            tokenizer=pipe.text.tokenizer,
            unet=pipe.denoiser,
            scheduler=pipe.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder, safe_serialization=True)
    elif isinstance(pipe.denoiser, DiTTransformer2DModel):
        pipe.denoiser.save_pretrained(folder / "transformer", safe_serialization=True)
        pipe.scheduler.save_pretrained(folder / "scheduler")
    else:
        DDIMPipeline(unet=pipe.denoiser, scheduler=pipe.scheduler).save_pretrained(folder)


def _load_directory(folder: Path) -> Pipeline:
    """A dense pipeline directory: unet/ or transformer/, scheduler/, and vae/, text_encoder/."""
    name = next((name for name in _DENOISERS if (folder / name).is_dir()), _DENOISERS[0])
    model = _load_dense(folder / name)
    autoencoder = None
    if (folder / "vae").is_dir():
        autoencoder = _load_dense(folder / "vae").requires_grad_(False)
    text = _load_text(folder)
    scheduler = _scheduler(_read_json(folder / "scheduler", "scheduler_config.json"), folder)
    return Pipeline(
        denoiser=model,
        scheduler=scheduler,
        conditioning=_conditioning(model, text),
        autoencoder=autoencoder,
        text=text,
    )


def _load_dense(folder: Path) -> nn.Module:
    model = _empty(folder / "config.json", _read_json(folder, "config.json"))
    _fill(model, folder / WEIGHTS)
    # Shipped bases are stored in bf16 where fp32 would be too large; all arithmetic starts in fp32.
    return nn.Module.to(model, dtype=torch.float32)


def _save_autoencoder(autoencoder: nn.Module, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    config = _architecture(autoencoder)
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_tensors(folder / WEIGHTS, autoencoder.state_dict(), {"format": "pt"})


def _save_text(text: Text, folder: Path) -> None:
    text.encoder.save_pretrained(folder / "text_encoder", safe_serialization=True)
    text.tokenizer.save_pretrained(folder / "tokenizer")


def _load_text(folder: Path) -> Text | None:
    """Tokenizer and text encoder of a folder, None where it has none."""
    if not (folder / "text_encoder").is_dir():
        return None
    try:
        return Text(
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            encoder=CLIPTextModel.from_pretrained(
                folder / "text_encoder", use_safetensors=True, dtype=torch.float32
            ).train(False),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder}/text_encoder or tokenizer: {first}") from error


def _conditioning(model: nn.Module, text: Text | None) -> Conditioning | None:
    """What a loaded model can be asked for: its captions, or its classes."""
    if text is not None:
        return bases.embedded_captions(text)
    if isinstance(model, DiTTransformer2DModel):
        return bases.class_labels(int(model.config.num_embeds_ada_norm))
    return None


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


def _changed_shapes(model: nn.Module, config: dict[str, Any]) -> dict[str, list[int]]:
    dense = dict(_build(config).state_dict())
    return {
        name: list(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name not in dense or tensor.shape != dense[name].shape
    }


def _empty(path: Path, config: dict[str, Any]) -> nn.Module:
    """The dense architecture of a config file, without weights; ValueError naming the file."""
    try:
        return _build(config)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"{path}: {error}") from error


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
    """The dense architecture on the meta device; buffers that no file holds are real."""
    name = config.get("_class_name")
    if name not in _CLASSES:
        raise ValueError(f"unknown _class_name {name!r}; known: {', '.join(_CLASSES)}")
    with init_empty_weights(include_buffers=False):
        model: nn.Module = _CLASSES[name].from_config(config)  # type: ignore[attr-defined]
    return zoo.without_label_dropout(model).eval()


def _scheduler(config: dict[str, Any], folder: Path) -> Any:
    """Flow matching by Euler steps where the file says so (SD3, FLUX), else DDIM."""
    flow = config.get("_class_name") == FlowMatchEulerDiscreteScheduler.__name__
    try:
        return (FlowMatchEulerDiscreteScheduler if flow else DDIMScheduler).from_config(config)
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
