"""What checkpoints hold: keys that are common to all families of restorers, and other kinds."""

import re
from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor

from ..errors import PFStorerError

UNET_PREFIX = "model.diffusion_model."
AUTOENCODER_PREFIX = "first_stage_model."
PROMPT_KEY = "cond_stage_model.prompt"

_TEXT_KEY = re.compile(rf"{re.escape(UNET_PREFIX)}.+\.attn2\.to_k\.weight")


def tensors_of(sd: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint, wrapped in "state_dict" or not."""
    nested = sd.get("state_dict")
    content = nested if isinstance(nested, Mapping) else sd
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def infer_context_dim(tensors: Mapping[str, Tensor]) -> int | None:
    """Returns the width of the text features of the UNet beside a restorer, None without one."""
    keys = (key for key in tensors if _TEXT_KEY.fullmatch(key) and tensors[key].ndim == 2)
    key = next(keys, None)
    return None if key is None else tensors[key].shape[1]


def bundled_state(
    subject: str, tensors: Mapping[str, Tensor], restorers: Container[str]
) -> dict[str, Tensor]:
    """Returns UNet, autoencoder and prompt of a bundled restorer by checkpoint key.

    Args:
        subject: what the sentence of an error begins with.
        tensors: all weights of the file.
        restorers: keys among them that are the restorer's own.

    Raises:
        PFStorerError: one of the three lacks.
    """
    prefixes = (UNET_PREFIX, AUTOENCODER_PREFIX, PROMPT_KEY)
    state = {
        key: tensor
        for key, tensor in tensors.items()
        if key.startswith(prefixes) and key not in restorers
    }
    for prefix in prefixes:
        if not any(key.startswith(prefix) for key in state):
            raise PFStorerError(
                f"{subject} says that it brings its own UNet and autoencoder, but has no weights "
                f"'{prefix}'; it is incomplete, so download or save it again."
            )
    return state


def other_kind(tensors: Mapping[str, Tensor]) -> str:
    """Says what kind of file has these keys."""
    if not tensors:
        return "holds no weights"
    kinds = {
        "is a LoRA": ("lora", "hada_w", "lokr_"),
        "is StableSR's autoencoder with feature wrapping (CFW)": ("decoder.fusion_layer_",),
        "is a ControlNet": ("control_model.", "controlnet_", "input_hint_block."),
        "is a Stable Diffusion checkpoint": (UNET_PREFIX, "input_blocks.", "down_blocks."),
        "is an autoencoder (VAE)": (AUTOENCODER_PREFIX, "decoder.conv_in."),
    }
    for kind, marks in kinds.items():
        if any(mark in key for key in tensors for mark in marks):
            return kind
    return f"holds {len(tensors)} weights of another kind, for example '{next(iter(tensors))}'"
