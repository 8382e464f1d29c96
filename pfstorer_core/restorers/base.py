"""Base restorer: an encoder of the LQ latent, and SFT blocks for the UNet of Stable Diffusion."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PFStorerError
from ..site_names import module_name
from ..weights.checks import check_numbers
from ..weights.digests import fingerprint
from .info import RestorerInfo, read_info
from .stablesr.encoder import EncoderConfig, TimeAwareEncoder
from .stablesr.layouts import (
    ENCODER_PREFIX,
    bundled_state,
    check_kind,
    check_weights,
    infer_context_dim,
    infer_encoder,
    infer_sft,
    sft_prefix,
    split,
    tensors_of,
)
from .stablesr.sft import SFTBlock


class BaseRestorer(nn.Module):
    """Encoder and SFT blocks of a restorer.

    `info` and `bundled_state` may be replaced before saving. `bundled_state` has the checkpoint
    keys of a bundled restorer's UNet, autoencoder and prompt; it is no part of the module.

    Args:
        info: description of the restorer.
        sft_shapes: per site in the UNet ("input_blocks.1.0", ...), channels and hidden channels.
        bundled_state: further weights, by checkpoint key.
        operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.

    Source: StableSR (arXiv 2305.07015), section 3.1.
    """

    def __init__(
        self,
        info: RestorerInfo,
        sft_shapes: Mapping[str, tuple[int, int]],
        bundled_state: dict[str, Tensor] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> None:
        super().__init__()
        self.info = info
        self.sites = tuple(sft_shapes)
        self.bundled_state = bundled_state
        place: dict[str, Any] = {"dtype": dtype, "device": device, "operations": operations}
        self.encoder = TimeAwareEncoder(info.encoder, **place)
        self.sft_blocks = nn.ModuleDict(
            {
                module_name(site): SFTBlock(channels, info.encoder.out_channels, hidden, **place)
                for site, (channels, hidden) in sft_shapes.items()
            }
        )

    @classmethod
    def from_state_dict(
        cls,
        sd: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> "BaseRestorer":
        """Builds the restorer that a state dict of any known layout holds.

        Known are StableSR's checkpoints (weights under "state_dict" among all those of Stable
        Diffusion, which are ignored), the files extracted for other user interfaces (encoder and
        SFT alone, with or without the UNet's prefix) and the own format; any base UNet.

        Args:
            sd: the file's dictionary; its tensors are copied.
            metadata: metadata of the safetensors file, if it is one.
            dtype: type of the weights; None keeps the file's.
            device: place of the weights; None is the CPU.
            operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.

        Raises:
            PFStorerError: other content, or weights that lack, do not fit or are not finite.
        """
        return build_restorer(
            sd, metadata, "This state dict", "restorer", dtype, device, operations
        )

    @classmethod
    def initialise(
        cls,
        site_channels: Mapping[str, int],
        encoder: EncoderConfig,
        hidden: int = 128,
        *,
        name: str = "untrained",
        prediction_type: str | None = None,
        license: str = "",
    ) -> "BaseRestorer":
        """Returns an untrained restorer, in float32 on the CPU.

        Gamma and beta begin at zero, so that the UNet first meets a plain norm at each site, and
        the LQ latent gains influence only as fast as it helps.

        Args:
            site_channels: per site in the UNet, its channels, a multiple of 32.
            encoder: shape of the encoder.
            hidden: hidden channels of each SFT block.
            name: name of the restorer.
            prediction_type: "epsilon" or "v_prediction".
            license: licence of the weights.
        """
        info = RestorerInfo(name, prediction_type, encoder, license, bundled=None)
        shapes = {site: (channels, hidden) for site, channels in site_channels.items()}
        restorer = cls(info, shapes)
        for site in restorer.sites:
            restorer.sft(site).zero_init()
        restorer.info = dataclasses.replace(info, fingerprint=fingerprint(restorer.weights()))
        return restorer

    def sft(self, site: str) -> SFTBlock:
        """Returns the SFT block of a site, for example "input_blocks.1.0".

        Raises:
            KeyError: the restorer has none there.
        """
        block = self.sft_blocks[module_name(site)]
        return block  # type: ignore[return-value]

    def forward(self, lq_latent: Tensor, timesteps: Tensor) -> list[Tensor]:
        """Returns the encoder's feature maps, finest first; see `TimeAwareEncoder.forward`."""
        return self.encoder(lq_latent, timesteps)

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights of encoder and SFT blocks by checkpoint key."""
        weights = {ENCODER_PREFIX + key: value for key, value in self.encoder.state_dict().items()}
        for site in self.sites:
            prefix = sft_prefix(site)
            weights |= {prefix + key: value for key, value in self.sft(site).state_dict().items()}
        return weights

    def state_dict_for_saving(self) -> dict[str, Tensor]:
        """Returns all weights by checkpoint key, those of a bundled restorer included."""
        return self.weights() | (self.bundled_state or {})


def build_restorer(
    sd: Mapping[str, Any],
    metadata: Mapping[str, str] | None,
    subject: str,
    name: str,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    operations: Any,
) -> BaseRestorer:
    """Does what `BaseRestorer.from_state_dict` does, for a file of a name.

    Args:
        subject: what the sentence of an error begins with.
        name: what to call the restorer unless it has a name.

    The other arguments are those of `BaseRestorer.from_state_dict`, as are the errors.
    """
    tensors = tensors_of(sd)
    check_kind(subject, tensors)
    encoder, blocks = split(tensors)
    given = {ENCODER_PREFIX + key: tensor for key, tensor in encoder.items()}
    for site, block in blocks.items():
        given |= {sft_prefix(site) + key: tensor for key, tensor in block.items()}
    info = read_info(metadata or {}, subject)
    try:
        if info is None:
            info = RestorerInfo(
                name,
                None,
                infer_encoder(encoder),
                license="",
                bundled=None,
                context_dim=infer_context_dim(tensors),
            )
        shapes = {site: infer_sft(block) for site, block in blocks.items()}
        if info.encoder.num_res_blocks * len(info.encoder.channel_mult) > len(given):
            raise ValueError("its description has more blocks than the file has weights")
        expected = BaseRestorer(info, shapes, device="meta").weights()
    # RuntimeError: PyTorch refuses sizes beyond any memory.
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise PFStorerError(
            f"{subject} has weights of shapes that make no restorer ({str(error).rstrip('.')}); "
            "choose a restorer of the StableSR family."
        ) from error
    check_weights(subject, given, expected)
    bundled = {} if info.bundled is None else bundled_state(subject, tensors)
    check_numbers(subject, given | bundled)

    stored = {tensor.dtype for tensor in given.values()}
    place: dict[str, Any] = {
        "dtype": dtype or (stored.pop() if len(stored) == 1 else torch.float32),
        "device": device or "cpu",
    }
    info = dataclasses.replace(info, fingerprint=fingerprint(given))
    # The module has no memory of its own; it takes over the one copy that is made of each tensor.
    # The copy needs the file no more and, made outside of inference mode, can be trained.
    with torch.inference_mode(False):
        restorer = BaseRestorer(
            info,
            shapes,
            {key: tensor.clone() for key, tensor in bundled.items()} or None,
            dtype=place["dtype"],
            device="meta",
            operations=operations,
        )
        modules: dict[nn.Module, dict[str, Tensor]] = {restorer.encoder: encoder}
        modules |= {restorer.sft(site): block for site, block in blocks.items()}
        for module, weights in modules.items():
            copies = {key: tensor.to(**place, copy=True) for key, tensor in weights.items()}
            module.load_state_dict(copies, assign=True)
    return restorer
