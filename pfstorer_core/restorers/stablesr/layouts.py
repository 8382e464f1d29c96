"""Checkpoint layouts of restorers: which keys they have, and what is wrong with a file's."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ...errors import PFStorerError
from .encoder import EncoderConfig

ENCODER_PREFIX = "structcond_stage_model."
UNET_PREFIX = "model.diffusion_model."
AUTOENCODER_PREFIX = "first_stage_model."
PROMPT_KEY = "cond_stage_model.prompt"

_SITE = r"(?:(?:input|output)_blocks\.\d+|middle_block)\.\d+"
_SFT_KEY = re.compile(rf"(?:{re.escape(UNET_PREFIX)})?({_SITE})\.spade\.(.+)")
_TEXT_KEY = re.compile(rf"{re.escape(UNET_PREFIX)}.+\.attn2\.to_k\.weight")
_ENCODER_BLOCK = re.compile(r"input_blocks\.(\d+)\.")
_ENCODER_OUTPUT = re.compile(r"fea_tran\.\d+\.out_layers\.")
# Weights whose first dimension is the width of the encoder's finest level.
_FIRST_LEVEL = tuple(
    f"input_blocks.{layer}.{kind}"
    for layer in ("0.0", "1.0.in_layers.0")
    for kind in ("weight", "bias")
)


def sft_prefix(site: str) -> str:
    """Returns the prefix of the checkpoint keys of a site's SFT block."""
    return f"{UNET_PREFIX}{site}.spade."


def tensors_of(sd: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint, wrapped in "state_dict" or not."""
    nested = sd.get("state_dict")
    content = nested if isinstance(nested, Mapping) else sd
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def split(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Picks the restorer out of a checkpoint's weights, averaged copies and all else left out.

    Returns:
        The encoder's weights, and per site, in the order of the UNet, those of its SFT block.
    """
    encoder: dict[str, Tensor] = {}
    blocks: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if key.startswith(ENCODER_PREFIX):
            encoder[key.removeprefix(ENCODER_PREFIX)] = tensor
        elif match := _SFT_KEY.fullmatch(key):
            blocks[match[1]][match[2]] = tensor
    return encoder, dict(sorted(blocks.items(), key=lambda item: _order(item[0])))


def infer_encoder(weights: Mapping[str, Tensor]) -> EncoderConfig:
    """Returns the likeliest shape of an encoder; StableSR's where too many weights lack.

    Weights that do not fit the result are missing or misshapen. The number of attention heads
    leaves no trace in weights and is StableSR's.
    """
    default = EncoderConfig()
    sizes: dict[str, int] = {key: tensor.shape[0] for key, tensor in weights.items() if tensor.ndim}
    first = weights.get("input_blocks.0.0.weight")
    model_channels = _most_common(
        (sizes[key] for key in _FIRST_LEVEL if key in sizes), default.model_channels
    )
    blocks: dict[int, list[str]] = defaultdict(list)
    for key in weights:
        if match := _ENCODER_BLOCK.match(key):
            blocks[int(match[1])].append(key)
    depths, widths, attention = [0], [model_channels], set()
    for index in sorted(blocks.keys() - {0}):
        block = f"input_blocks.{index}"
        if any(key.startswith(f"{block}.0.op.") for key in blocks[index]):
            depths.append(0)
            widths.append(widths[-1])
            continue
        depths[-1] += 1
        outputs = (sizes[key] for key in sizes if key.startswith(f"{block}.0.out_layers."))
        widths[-1] = _most_common(outputs, widths[-1])
        if any(key.startswith(f"{block}.1.") for key in blocks[index]):
            attention.add(2 ** (len(depths) - 1))
    return EncoderConfig(
        in_channels=default.in_channels if first is None or first.ndim < 2 else first.shape[1],
        model_channels=model_channels,
        out_channels=_most_common(
            (size for key, size in sizes.items() if _ENCODER_OUTPUT.match(key)),
            default.out_channels,
        ),
        num_res_blocks=max(depths),
        attention_resolutions=tuple(attention),
        channel_mult=tuple(width // model_channels for width in widths),
    )


def infer_context_dim(tensors: Mapping[str, Tensor]) -> int | None:
    """Returns the width of the text features of the UNet beside a restorer, None without one."""
    keys = (key for key in tensors if _TEXT_KEY.fullmatch(key) and tensors[key].ndim == 2)
    key = next(keys, None)
    return None if key is None else tensors[key].shape[1]


def infer_sft(weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """Returns channels and hidden channels of an SFT block, of which some weights may lack."""
    sizes = {key: tensor.shape[0] for key, tensor in weights.items() if tensor.ndim}
    hidden = (size for key, size in sizes.items() if key.startswith("mlp_shared."))
    channels = (size for key, size in sizes.items() if not key.startswith("mlp_shared."))
    return _most_common(channels, 32), _most_common(hidden, 128)


def check_kind(subject: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuses weights that are no restorer's, saying what they are.

    Raises:
        PFStorerError: no encoder or no SFT block among the weights.
    """
    encoder, blocks = split(tensors)
    if encoder and blocks:
        return
    if encoder or blocks:
        part, other = ("the encoder", "SFT blocks") if encoder else ("the SFT blocks", "encoder")
        found = f"holds only {part} of a restorer without its {other}"
    else:
        found = _other_kind(tensors)
    raise PFStorerError(
        f"{subject} {found}; a restorer file of the StableSR family is needed, so choose another."
    )


def check_weights(
    subject: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Refuses a restorer whose weights are incomplete or do not fit together.

    Args:
        subject: what the sentence of an error begins with.
        given: the restorer's weights by checkpoint key.
        expected: tensors of the right keys and shapes.

    Raises:
        PFStorerError: missing, unknown or misshapen weights, or such as are no plain numbers.
    """
    missing = sorted(expected.keys() - given.keys())
    if missing:
        raise PFStorerError(
            f"{subject} lacks {len(missing)} of the restorer's {len(expected)} weights, for "
            f"example '{missing[0]}'; it is incomplete, so download or convert it again."
        )
    unknown = sorted(given.keys() - expected.keys())
    if unknown:
        raise PFStorerError(
            f"{subject} has {len(unknown)} weights that no known restorer has, for example "
            f"'{unknown[0]}'; choose a restorer of the StableSR family."
        )
    wrong = sorted(key for key in expected if given[key].shape != expected[key].shape)
    if wrong:
        raise PFStorerError(
            f"{subject} has {len(wrong)} weights of a wrong shape, for example '{wrong[0]}' of "
            f"{tuple(given[wrong[0]].shape)} instead of {tuple(expected[wrong[0]].shape)}; choose "
            "a restorer of the StableSR family."
        )


def bundled_state(subject: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns UNet, autoencoder and prompt of a bundled restorer by checkpoint key.

    Raises:
        PFStorerError: one of the three lacks.
    """
    prefixes = (UNET_PREFIX, AUTOENCODER_PREFIX, PROMPT_KEY)
    state = {
        key: tensor
        for key, tensor in tensors.items()
        if key.startswith(prefixes) and not _SFT_KEY.fullmatch(key)
    }
    for prefix in prefixes:
        if not any(key.startswith(prefix) for key in state):
            raise PFStorerError(
                f"{subject} says that it brings its own UNet and autoencoder, but has no weights "
                f"'{prefix}'; it is incomplete, so download or save it again."
            )
    return state


def _most_common(sizes: Iterable[int], default: int) -> int:
    """Returns the size that most weights have, so that one misshapen weight is told apart."""
    counted = Counter(sizes).most_common(1)
    return counted[0][0] if counted else default


def _order(site: str) -> tuple[str, list[int]]:
    part, *numbers = site.split(".")  # input, middle, output: by luck also the alphabet's order
    return part, [int(number) for number in numbers]


def _other_kind(tensors: Mapping[str, Tensor]) -> str:
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
