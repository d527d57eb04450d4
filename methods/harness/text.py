"""Captions as numbers: a small CLIP text encoder and its tokenizer, both of transformers."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging

# A bar for 36 tensors hides what a command has to say.
logging.disable_progress_bar()  # type: ignore[no-untyped-call]

_END_OF_WORD = "</w>"


@dataclass(frozen=True)
class Text:
    """A tokenizer with the encoder that belongs to it; frozen while a denoiser is pruned."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids (N, L), padded to the encoder's length."""
        ids = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return torch.as_tensor(ids)

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Embeddings (N, L, D) of the captions, what cross-attention reads."""
        device = next(self.encoder.parameters()).device
        with torch.no_grad():
            states: Tensor = self.encoder(self.tokens(captions).to(device))[0]
        return states


def word_tokenizer(captions: Iterable[str], length: int) -> CLIPTokenizer:
    """A CLIP tokenizer for which every word of `captions` is one token.

    Byte-pair merges spell each word from the left. Letters stay in the vocabulary, so a word that
    was never seen is spelt out instead of lost.
    """
    order = sorted({word for caption in captions for word in re.findall(r"[a-z]+", caption)})
    for _ in order:
        tokenizer = _spelling(order, length)
        # An earlier merge ("an" of "ankle") may split a later word ("orange"): that one goes first.
        split = [word for word in order if len(tokenizer.tokenize(word)) > 1]
        if not split:
            return tokenizer
        order = split + [word for word in order if word not in split]
    raise ValueError("no order of merges keeps every word of the captions whole")


def _spelling(words: Sequence[str], length: int) -> CLIPTokenizer:
    letters = ["-", *(chr(c) for c in range(ord("a"), ord("z") + 1))]
    merges: dict[tuple[str, str], str] = {}
    for word in words:
        left = word[0]
        for position, letter in enumerate(word[1:], start=2):
            right = letter + _END_OF_WORD if position == len(word) else letter
            left = merges.setdefault((left, right), left + right)
    pieces = [*letters, *(letter + _END_OF_WORD for letter in letters), *merges.values()]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
        (Path(folder) / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=length)
    return tokenizer


def small_text_encoder(tokenizer: CLIPTokenizer, width: int = 64, layers: int = 2) -> CLIPTextModel:
    """An untrained CLIP text encoder that fits the tokenizer."""
    end = int(tokenizer.eos_token_id)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=int(tokenizer.bos_token_id),
            eos_token_id=end,
            pad_token_id=end,
        )
    )
