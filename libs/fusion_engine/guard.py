"""The proof that growth changed nothing: base and grown logits must be equal bit for bit, in fp32, before any training.

Logits and not perplexity: one forgotten projection moves a perplexity of 651 by 0.5 and a logit by 0.07.

Depth is equal in every family and on every device: the old blocks run the same kernels on the same shapes, and a new
block adds exact zeros. Width adds exact zeros inside the sums of down_proj, whose order a kernel chooses by the number
of channels: rounding alone then moves logits by up to 5e-5 of the largest (30 random layers, 176 -> 304 channels, one
CPU thread). So the widened FFNs are computed as two branches, which asks the same of the stored weights without that
rounding, and equality is again exact.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fusion_engine.base_folder import load_model
from fusion_engine.families import FAMILIES
from fusion_engine.ffn_branches import split_ffns
from fusion_engine.model_config import read_config, read_shape
from fusion_engine.outcomes import RejectedError

PROMPT_TOKENS = 128


def guard_prompts(rows: list[NDArray[np.int32]], vocabulary: int) -> list[NDArray[np.int32]]:
    """Three prompts of the customer's text and one that wanders over the whole vocabulary, each up to 128 ids."""
    wandering = (np.arange(PROMPT_TOKENS, dtype=np.int64) * 7919 % vocabulary).astype(np.int32)
    return [row[:PROMPT_TOKENS] for row in rows[:3]] + [wandering]


def check_growth(base: Path, grown: Path, prompts: list[NDArray[np.int32]], device: torch.device) -> float:
    """Return max |logits(base) - logits(grown)|, which is 0.0.

    Raises RejectedError growth_not_preserving otherwise. One model is in memory at a time.
    """
    channels = read_shape(read_config(base)).ffn
    before, after = (_logits(folder, prompts, device, channels) for folder in (base, grown))
    difference = max(float((b - a).abs().max()) for b, a in zip(before, after, strict=True))
    if difference != 0.0:  # NaN too
        raise RejectedError(
            "growth_not_preserving",
            f"the grown model's logits differ from the base's by {difference:g}; nothing was trained",
        )
    return difference


@torch.no_grad()
def _logits(
    folder: Path, prompts: list[NDArray[np.int32]], device: torch.device, old_channels: int
) -> list[torch.Tensor]:
    model = load_model(folder, torch.float32)
    shape = read_shape(read_config(folder))
    if shape.ffn != old_channels:
        split_ffns(model, FAMILIES[shape.family], old_channels)
    model = model.to(device).eval()
    tensors = [torch.from_numpy(prompt.astype(np.int64))[None].to(device) for prompt in prompts]
    return [model(input_ids=tensor, use_cache=False).logits.cpu() for tensor in tensors]
