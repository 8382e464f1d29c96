"""Checkpoint layouts of StableSR's restorers: which keys they have, and what shapes tell."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..checkpoints import UNET_PREFIX
from .encoder import EncoderConfig

ENCODER_PREFIX = "structcond_stage_model."

_SITE = r"(?:(?:input|output)_blocks\.\d+|middle_block)\.\d+"
_SFT_KEY = re.compile(rf"(?:{re.escape(UNET_PREFIX)})?({_SITE})\.spade\.(.+)")
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


def infer_sft(weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """Returns channels and hidden channels of an SFT block, of which some weights may lack."""
    sizes = {key: tensor.shape[0] for key, tensor in weights.items() if tensor.ndim}
    hidden = (size for key, size in sizes.items() if key.startswith("mlp_shared."))
    channels = (size for key, size in sizes.items() if not key.startswith("mlp_shared."))
    return _most_common(channels, 32), _most_common(hidden, 128)


def check_whole(encoder: Mapping[str, Tensor], blocks: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuses an encoder without SFT blocks, and the other way round.

    Raises:
        ValueError: one of the two lacks.
    """
    if not blocks:
        raise ValueError("only the encoder, without its SFT blocks")
    if not encoder:
        raise ValueError("only the SFT blocks, without their encoder")


def _most_common(sizes: Iterable[int], default: int) -> int:
    """Returns the size that most weights have, so that one misshapen weight is told apart."""
    counted = Counter(sizes).most_common(1)
    return counted[0][0] if counted else default


def _order(site: str) -> tuple[str, list[int]]:
    part, *numbers = site.split(".")  # input, middle, output: by luck also the alphabet's order
    return part, [int(number) for number in numbers]
