"""A small convolutional autoencoder for the mini restorer: patches to latents and back.

Its linear path is a patch transform that starts as the PCA of the training pictures (so it is good
from the first step); a convolutional path beside it adds what a linear transform cannot. Both
paths are needed: the linear one makes training short on a CPU, the other keeps eyes and moles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS = 8  # of the group norm
_DETAIL = 8  # full-resolution channels that the refinement gets from the latent


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of a PatchAutoencoder.

    Attributes:
        patch: pixels of a picture per latent cell and axis.
        latent_channels: channels of the latent.
        encoder_width, decoder_width: channels of the convolutional paths.
        encoder_depth, decoder_depth: residual blocks in them.
        refine_width: channels of the decoder's last layers at full resolution; 0 for none.
    """

    patch: int = 4
    latent_channels: int = 8
    encoder_width: int = 64
    encoder_depth: int = 2
    decoder_width: int = 96
    decoder_depth: int = 4
    refine_width: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


class _ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(norm(x)))))."""

    def __init__(self, width: int, operations: Any, place: dict[str, Any]):
        super().__init__()
        self.norm = operations.GroupNorm(_GROUPS, width, **place)
        self.conv_in = operations.Conv2d(width, width, 3, padding=1, **place)
        self.conv_out = operations.Conv2d(width, width, 3, padding=1, **place)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_out(F.silu(self.conv_in(F.silu(self.norm(x)))))


class _Path(nn.Module):
    """Linear map plus convolutional residual between two channel counts at one resolution."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        width: int,
        depth: int,
        operations: Any,
        place: dict[str, Any],
    ):
        super().__init__()
        self.linear = operations.Conv2d(channels_in, channels_out, 1, **place)
        self.stem = operations.Conv2d(channels_in, width, 3, padding=1, **place)
        self.blocks = nn.ModuleList(_ResidualBlock(width, operations, place) for _ in range(depth))
        self.head = operations.Conv2d(width, channels_out, 3, padding=1, **place)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.linear(x) + self.head(F.silu(h))


class _Refinement(nn.Module):
    """picture + convolutions of (picture, latent) at full resolution.

    A patch decoder leaves a faint grid of its patches where a latent is not quite that of a
    picture; this sees over their borders, and from the latent knows where in a patch it is.
    """

    def __init__(self, latent: int, patch: int, width: int, operations: Any, place: dict[str, Any]):
        super().__init__()
        self.patch = patch
        self.detail = operations.Conv2d(latent, _DETAIL * patch**2, 1, **place)
        self.conv_in = operations.Conv2d(3 + _DETAIL, width, 3, padding=1, **place)
        self.conv_mid = operations.Conv2d(width, width, 3, padding=1, **place)
        self.conv_out = operations.Conv2d(width, 3, 3, padding=1, **place)

    def forward(self, picture: Tensor, latent: Tensor) -> Tensor:
        detail = F.pixel_shuffle(self.detail(latent), self.patch)  # (B, _DETAIL, H, W)
        h = F.silu(self.conv_in(torch.cat([picture, detail], 1)))
        return picture + self.conv_out(F.silu(self.conv_mid(h)))


class PatchAutoencoder(nn.Module):
    """Autoencoder with patch-wise down- and upsampling.

    Args:
        config: sizes.
        dtype, device: of the parameters.
        operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = nn,
    ):
        super().__init__()
        self.config = config
        pixels = 3 * config.patch**2  # numbers in one patch of the picture
        latent, place = config.latent_channels, {"dtype": dtype, "device": device}
        self.encoder = _Path(
            pixels, latent, config.encoder_width, config.encoder_depth, operations, place
        )
        self.decoder = _Path(
            latent, pixels, config.decoder_width, config.decoder_depth, operations, place
        )
        self.refine: nn.Module | None = None
        if config.refine_width:
            self.refine = _Refinement(latent, config.patch, config.refine_width, operations, place)

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, H / patch, W / patch); both multiples of patch."""
        return self.encoder(F.pixel_unshuffle(image, self.config.patch))

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, h * patch, w * patch), about [-1, 1], not clamped."""
        picture = F.pixel_shuffle(self.decoder(latent), self.config.patch)
        return picture if self.refine is None else self.refine(picture, latent)

    @torch.no_grad()
    def start_from_pca(self, images: Tensor) -> None:
        """Makes the linear paths the PCA of the images' patches and silences the others.

        The latent of each channel then has the patch component's natural scale: one global factor,
        not one per channel, brings it to unit variance, so that errors stay spread over the
        frequencies.

        Args:
            images: (B, 3, H, W) in [-1, 1], at least as many patches as 3 * patch^2.
        """
        patches = F.pixel_unshuffle(images, self.config.patch)  # (B, 3 * patch^2, h, w)
        patches = patches.movedim(1, -1).flatten(0, -2)  # (N, 3 * patch^2)
        mean = patches.mean(0)
        covariance = torch.cov((patches - mean).cpu().double().T)
        axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)  # columns, largest variance first
        basis = axes[:, : self.config.latent_channels].to(patches)  # (3 * patch^2, C)
        scale = ((patches - mean) @ basis).std()
        basis_in = basis.T / scale
        self.encoder.linear.weight.copy_(basis_in[:, :, None, None])
        self.encoder.linear.bias.copy_(-(basis_in @ mean))
        self.decoder.linear.weight.copy_((basis * scale)[:, :, None, None])
        self.decoder.linear.bias.copy_(mean)
        for path in (self.encoder, self.decoder):
            _silence([path.head, *(block.get_submodule("conv_out") for block in path.blocks)])
        self.silence_refinement()

    def silence_refinement(self) -> None:
        """Makes the refinement, if there is one, start as the identity."""
        if self.refine is not None:
            _silence([self.refine.get_submodule("conv_out")])


def _silence(layers: Iterable[nn.Module]) -> None:
    for parameter in (p for layer in layers for p in layer.parameters()):
        nn.init.zeros_(parameter)
