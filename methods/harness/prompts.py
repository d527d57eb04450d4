"""From what a person asks for to rows of a pipeline's conditioning."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .pipeline import Conditioning, Pipeline


def asked(pipe: Pipeline, prompt: str | None, count: int) -> tuple[Pipeline, Tensor | None]:
    """The pipeline and the rows (count,) that ask for `prompt`, or for everything in turn.

    A pipeline with a text encoder can be asked for any words, also ones it never saw together; one
    with classes only for a class by its name.

    Raises:
        ValueError: the model cannot be asked, or not for this.
    """
    known = pipe.conditioning
    if known is None:
        if prompt is not None:
            raise ValueError("--prompt: this model draws what it likes; leave the prompt out")
        return pipe, None
    if prompt is None:
        # A fixed stride walks over garments and colours instead of staying with the first.
        spread = 1 + 53 * (known.null > 53)
        return pipe, (torch.arange(count) * spread) % known.null
    if prompt in known.names:
        return pipe, torch.full((count,), known.names.index(prompt))
    if pipe.text is None:
        names = ", ".join(name for name in known.names if name)
        raise ValueError(f"--prompt: this model knows {names}; not {prompt!r}")
    tables = {"encoder_hidden_states": pipe.text.embed([prompt, ""])}
    return replace(pipe, conditioning=Conditioning(tables, 1, (prompt, ""))), torch.zeros(
        count, dtype=torch.long
    )
