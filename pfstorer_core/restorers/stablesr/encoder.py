"""Time-aware encoder: features of the LQ latent, at each scale, for one diffusion timestep."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...attention import attention
from ...errors import PFStorerError


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of a `TimeAwareEncoder`; the defaults are StableSR's.

    Args:
        in_channels: channels of the LQ latent.
        model_channels: channels of the finest level, a multiple of 32.
        out_channels: channels of each feature map that is returned, a multiple of 32.
        num_res_blocks: residual blocks per level.
        attention_resolutions: downsampling factors (1, 2, 4, ...) whose levels have attention.
        channel_mult: per level, its channels as a multiple of `model_channels`.
        num_heads: attention heads; weights do not reveal it.

    Raises:
        PFStorerError: a number that no encoder can be built with.
    """

    in_channels: int = 4
    model_channels: int = 256
    out_channels: int = 256
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (4, 2, 1)
    channel_mult: tuple[int, ...] = (1, 1, 2, 2)
    num_heads: int = 4

    def __post_init__(self) -> None:
        # JSON gives lists; order carries no meaning, so equal encoders compare equal.
        resolutions = tuple(sorted(set(self.attention_resolutions), reverse=True))
        object.__setattr__(self, "attention_resolutions", resolutions)
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        counts: tuple[int, ...] = (self.in_channels, self.num_res_blocks, self.num_heads)
        counts += self.channel_mult + self.attention_resolutions
        if not self.channel_mult or any(not _is_positive(n) for n in counts):
            raise PFStorerError(f"{self} has a count that is not a positive whole number.")
        for name in ("model_channels", "out_channels"):
            value = getattr(self, name)
            if not _is_positive(value) or value % 32:
                raise PFStorerError(f"EncoderConfig.{name} is {value}; use a multiple of 32.")
        widths = {self.model_channels * mult for mult in self.channel_mult}
        if any(width % self.num_heads for width in widths):
            raise PFStorerError(
                f"EncoderConfig.num_heads is {self.num_heads}, which does not divide the channels "
                f"{sorted(widths)} of the levels; use a divisor of all of them."
            )


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Returns the sinusoidal embedding of timesteps, cosines first.

    Args:
        timesteps: (B,) in [0, 1000), whole or fractional.
        dim: even width of the embedding.

    Returns:
        (B, dim) in float32: half precision cannot tell neighbouring timesteps apart.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(steps * (-math.log(10000.0) / half))  # (dim / 2,)
    angles = timesteps.to(torch.float32)[:, None] * frequencies  # (B, dim / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, dim)


class TimeAwareEncoder(nn.Module):
    """Encodes an LQ latent for one timestep: the downward half of a small diffusion UNet.

    The strength of the guidance can so follow the noise: strong at early steps, weak at late ones.
    Building with `torch.nn` gives each residual branch a zero last layer (see `zero_init`).

    Args:
        config: shape of the encoder.
        operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.

    Source: StableSR (arXiv 2305.07015), section 3.1; layer names as in its weights.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> None:
        super().__init__()
        self.config = config
        ops = _Layers(operations, config.model_channels * 4, dtype, device)
        ch = config.model_channels
        self.time_embed = nn.Sequential(
            ops.linear(ch, ops.emb_channels),
            nn.SiLU(),
            ops.linear(ops.emb_channels, ops.emb_channels),
        )
        self.input_blocks = nn.ModuleList([_Stage(ops.conv(config.in_channels, ch, 3))])
        level_channels: list[int] = []
        for level, mult in enumerate(config.channel_mult):
            if level > 0:
                self.input_blocks.append(_Stage(_Downsample(ch, ops)))
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [_ResBlock(ch, config.model_channels * mult, ops)]
                ch = config.model_channels * mult
                if 2**level in config.attention_resolutions:
                    layers.append(_AttentionBlock(ch, config.num_heads, ops))
                self.input_blocks.append(_Stage(*layers))
            level_channels.append(ch)
        self.middle_block = _Stage(
            _ResBlock(ch, ch, ops),
            _AttentionBlock(ch, config.num_heads, ops),
            _ResBlock(ch, ch, ops),
        )
        self.fea_tran = nn.ModuleList(
            _ResBlock(channels, config.out_channels, ops) for channels in level_channels
        )
        if operations is torch.nn:
            self.zero_init()

    def zero_init(self) -> None:
        """Zeroes the last layer of each residual branch.

        A fresh encoder is then a chain of identities and downsamplings, whose gradients neither
        grow nor fade with depth; the branches fade in as training finds use for them.
        """
        for module in self.modules():
            if isinstance(module, (_ResBlock, _AttentionBlock)):
                nn.init.zeros_(module.last_layer.weight)
                nn.init.zeros_(module.last_layer.bias)

    def forward(self, lq_latent: Tensor, timesteps: Tensor) -> list[Tensor]:
        """Returns one feature map per level, finest first.

        Args:
            lq_latent: (B, in_channels, H, W), scaled like the diffusion latents; its type is the
                type of the computation.
            timesteps: (B,) or (1,) in [0, 1000), whole or fractional, one per item or for all.

        Returns:
            Level k: (B, out_channels, ceil(H / 2**k), ceil(W / 2**k)).

        Raises:
            PFStorerError: the latent has another number of channels than the encoder.
        """
        if lq_latent.ndim != 4 or lq_latent.shape[1] != self.config.in_channels:
            raise PFStorerError(
                f"The restorer got an LQ latent of shape {tuple(lq_latent.shape)}, but takes "
                f"(batch, {self.config.in_channels}, height, width); encode the image with the VAE "
                "that belongs to the restorer."
            )
        emb = timestep_embedding(timesteps, self.config.model_channels)  # (B, model_channels)
        # each block would activate it anew
        emb = F.silu(self.time_embed(emb.to(lq_latent.dtype)))  # (B, 4 * model_channels)
        h = lq_latent
        levels: list[Tensor] = []
        for stage in self.input_blocks:
            if isinstance(next(stage.children()), _Downsample):
                levels.append(h)  # (B, C, H / 2**k, W / 2**k)
            h = stage(h, emb)
        levels.append(self.middle_block(h, emb))
        return [
            block(features, emb) for block, features in zip(self.fea_tran, levels, strict=True)
        ]  # each (B, out_channels, H / 2**k, W / 2**k)


class _Layers:
    """Makes layers of one namespace, type and device."""

    def __init__(
        self,
        operations: Any,
        emb_channels: int,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        self.operations = operations
        self.emb_channels = emb_channels
        self.place = {"dtype": dtype, "device": device}

    def linear(self, inputs: int, outputs: int) -> Any:
        return self.operations.Linear(inputs, outputs, **self.place)

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> Any:
        return self.operations.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2, **self.place
        )

    def conv1d(self, inputs: int, outputs: int) -> Any:
        return self.operations.Conv1d(inputs, outputs, 1, **self.place)

    def norm(self, channels: int) -> Any:
        return self.operations.GroupNorm(32, channels, eps=1e-5, **self.place)


class _Stage(nn.Sequential):
    """Layers in a row, of which the residual blocks also get the activated embedding."""

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            h = layer(h, emb) if isinstance(layer, _ResBlock) else layer(h)
        return h


class _Downsample(nn.Module):
    def __init__(self, channels: int, ops: _Layers) -> None:
        super().__init__()
        self.op = ops.conv(channels, channels, 3, stride=2)

    def forward(self, h: Tensor) -> Tensor:
        return self.op(h)  # (B, C, ceil(H / 2), ceil(W / 2))


class _ResBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int, ops: _Layers) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            ops.norm(channels), nn.SiLU(), ops.conv(channels, out_channels, 3)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), ops.linear(ops.emb_channels, out_channels))
        # The identity stands where StableSR's layer numbering has a dropout.
        self.out_layers = nn.Sequential(
            ops.norm(out_channels),
            nn.SiLU(),
            nn.Identity(),
            ops.conv(out_channels, out_channels, 3),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else ops.conv(channels, out_channels, 1)
        )

    @property
    def last_layer(self) -> Any:
        return self.out_layers[3]

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)  # (B, C_out, H, W)
        h = h + self.emb_layers[1](emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)  # (B, C_out, H, W)


class _AttentionBlock(nn.Module):
    def __init__(self, channels: int, num_heads: int, ops: _Layers) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = ops.norm(channels)
        self.qkv = ops.conv1d(channels, channels * 3)
        self.proj_out = ops.conv1d(channels, channels)

    @property
    def last_layer(self) -> Any:
        return self.proj_out

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2)  # (B, C, H * W)
        # Channel order of the weights: head, then query / key / value, then width.
        # Channels last in memory, which the fast attention kernels ask for.
        qkv = self.qkv(tokens).transpose(1, 2).contiguous()  # (B, H * W, 3 * C)
        qkv = qkv.unflatten(2, (self.num_heads, 3, -1)).transpose(1, 2)  # (B, heads, H * W, 3, D)
        q, k, v = qkv.unbind(3)  # (B, heads, H * W, D)
        h = attention(q, k, v)  # (B, heads, H * W, D)
        h = self.proj_out(h.transpose(2, 3).flatten(1, 2))  # (B, C, H * W)
        return x + h.unflatten(2, x.shape[2:])  # (B, C, H, W)


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
