"""The shipped bases before training: what they are asked for and what they learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from . import zoo
from .data import CLASS_NAMES, Splits, fashion_mnist
from .garments import requests, tinted_garments
from .pipeline import Conditioning, Pipeline
from .text import Text, small_text_encoder, word_tokenizer

LARGEST_FILE = 15_000_000  # bytes of a shipped weights file
CAPTION_LENGTH = 12  # tokens, start and end included; the longest caption has 11


def splits(name: str) -> Splits:
    """The images of a base, always in the same order.

    Raises:
        ValueError: the base is unknown.
        DataUnavailable: the images cannot be had.
    """
    zoo.base(name)
    return tinted_garments() if name == "fashion_t2i" else fashion_mnist()


def untrained(name: str) -> Pipeline:
    """A base with fresh weights, ready to train; a latent base needs its trained autoencoder.

    Raises:
        ValueError: the base is unknown.
        FileNotFoundError: `fashion_t2i` without `models/fashion_t2i/vae`.
    """
    base = zoo.base(name)
    denoiser, scheduler = base.build(), base.scheduler()
    if name == "fashion_dit":
        return Pipeline(denoiser, scheduler, guidance=base.guidance, conditioning=class_labels())
    if name == "fashion_t2i":
        text = untrained_text()
        return Pipeline(
            CaptionedUNet(denoiser, text),
            scheduler,
            guidance=base.guidance,
            conditioning=caption_tokens(text),
            autoencoder=trained_autoencoder(base.folder / "vae"),
        )
    return Pipeline(denoiser, scheduler)


def class_labels(count: int = len(CLASS_NAMES)) -> Conditioning:
    """The classes of a DiT as its labels; the row after the last is no label."""
    names = CLASS_NAMES if count == len(CLASS_NAMES) else tuple(f"class {k}" for k in range(count))
    return Conditioning({"class_labels": torch.arange(count + 1)}, count, (*names, ""))


def captions() -> tuple[str, ...]:
    """Every caption of the text-to-image base by its row; the last is the empty one."""
    return (*(request.caption for request in requests()), "")


def untrained_text() -> Text:
    tokenizer = word_tokenizer(captions(), CAPTION_LENGTH)
    return Text(tokenizer, small_text_encoder(tokenizer))


def caption_tokens(text: Text) -> Conditioning:
    """Captions as token ids, for training the text encoder together with the U-Net."""
    names = captions()
    return Conditioning({"input_ids": text.tokens(names)}, len(names) - 1, names)


def embedded_captions(text: Text) -> Conditioning:
    """Captions as the frozen text encoder embeds them: what a pruned U-Net is asked for."""
    names = captions()
    return Conditioning({"encoder_hidden_states": text.embed(names)}, len(names) - 1, names)


class CaptionedUNet(nn.Module):
    """A U-Net and its text encoder as one module, only while both are trained."""

    def __init__(self, unet: nn.Module, text: Text) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text.encoder

    @property
    def config(self) -> Any:
        return self.unet.config

    def forward(
        self, sample: Tensor, timestep: Tensor, input_ids: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Noisy latents (B, C, H, W), timesteps (B,) and token ids (B, L) -> (answer,)."""
        states = self.text_encoder(input_ids)[0]
        answer: tuple[Tensor] = self.unet(sample, timestep, states, return_dict=return_dict)
        return answer


def small_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder: 3 x 32 x 32 pixels to 4 x 16 x 16 latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=32,
    )


def trained_autoencoder(folder: Path) -> AutoencoderKL:
    """A frozen autoencoder from a diffusers folder.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist; train it with scripts/train_autoencoder.py"
        )
    model: AutoencoderKL = AutoencoderKL.from_pretrained(folder, use_safetensors=True)
    return model.eval().requires_grad_(False)


def finished(pipe: Pipeline) -> Pipeline:
    """A trained base as it is shipped: text encoder apart, stored in bf16 if fp32 is too large."""
    pipe.denoiser.eval()
    if isinstance(pipe.denoiser, CaptionedUNet):
        tokenizer = word_tokenizer(captions(), CAPTION_LENGTH)
        text = Text(tokenizer, pipe.denoiser.text_encoder)
        pipe = replace(pipe, denoiser=pipe.denoiser.unet, text=text, conditioning=None)
    if sum(p.numel() * p.element_size() for p in pipe.denoiser.parameters()) > LARGEST_FILE:
        nn.Module.to(pipe.denoiser, dtype=torch.bfloat16)
    return pipe
