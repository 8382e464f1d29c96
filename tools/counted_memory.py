"""Counts the memory of a restorer's networks, without a GPU and without weights.

They are built in their true shape on PyTorch's fake tensors, which have sizes but no values, and
every tensor that a step would hold is counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

CELL = 8  # pixels per latent pixel
PROMPT_TOKENS, PROMPT_WIDTH = 77, 1024
SFT_HIDDEN = 128  # channels, as in StableSR
UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "num_heads": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": PROMPT_WIDTH,
    "legacy": False,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
VAE: dict[str, Any] = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, fake ones as well as real ones.

    Args:
        known: tensors that are there already and do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()
        for tensor in known:
            self._note(tensor, counts=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and notes what it returns."""
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, out)
        return out

    def _note(self, tensor: Tensor, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive.add(key)
        size = storage.nbytes() if counts else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


class FusedAttention(TorchFunctionMode):
    """Attention by the kernel that a GPU runs, which holds no matrix of scores.

    Without a GPU at hand PyTorch would choose another one for fake tensors of a GPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replaces PyTorch's choice."""
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            query, key, value = (x.to(dtype) for x in (query, key, value))
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        return kernel(query, key, value, None, query.requires_grad or key.requires_grad)[0]


@dataclass
class Networks:
    """UNet, restorer and adapter.

    Args:
        unet: ComfyUI's `UNetModel`.
        restorer: what steers it.
        adapter: of one person.
        context_dim: width of the text embedding.
        pooled_dim: width of the pooled one; None for none.
    """

    unet: nn.Module
    restorer: nn.Module
    adapter: nn.Module
    context_dim: int = PROMPT_WIDTH
    pooled_dim: int | None = None


def networks(
    dtype: torch.dtype, device: str, trained: bool, shape: dict[str, Any] = UNET
) -> Networks:
    """Builds Stable Diffusion 2.1's with random or fake weights; a trained adapter is float32."""
    from pfstorer_core.host.load.unet import build_unet
    from pfstorer_core.host.sites import find_sft_sites
    from pfstorer_core.restorers.info import RestorerInfo
    from pfstorer_core.restorers.stablesr.encoder import EncoderConfig
    from pfstorer_core.restorers.stablesr.restorer import StableSRRestorer

    place: dict[str, Any] = {"dtype": dtype, "device": device}
    unet = build_unet(shape, **place)
    shapes = {site: (width, SFT_HIDDEN) for site, (width, _) in find_sft_sites(unet).items()}
    info = RestorerInfo("SD", None, EncoderConfig(), "", None)
    restorer = StableSRRestorer(info, shapes, **place)
    return Networks(
        unet.requires_grad_(False),
        restorer.requires_grad_(False),
        adapter_of(unet, PROMPT_WIDTH, torch.float32 if trained else dtype, trained),
    )


def adapter_of(unet: nn.Module, context_dim: int, dtype: torch.dtype, trained: bool) -> nn.Module:
    """Builds an adapter for a UNet, on its device."""
    from pfstorer_core.host.sites import find_identity_sites
    from pfstorer_core.identities.adapter import AdapterInfo, IdentityAdapter
    from pfstorer_core.identities.config import PersonalizationConfig

    sites = find_identity_sites(unet)
    described = AdapterInfo("person", "SD", "", context_dim, sites, PersonalizationConfig())
    device = next(unet.parameters()).device
    return IdentityAdapter(described, dtype=dtype, device=device).requires_grad_(trained)


def weights(*modules: nn.Module) -> int:
    """Returns the bytes of the modules' weights."""
    return sum(p.numel() * p.element_size() for m in modules for p in m.parameters())


def tensors(*modules: nn.Module) -> Iterator[Tensor]:
    """Returns parameters and buffers."""
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


@dataclass(frozen=True)
class Pass:
    """Bytes that a pass through the UNet holds beside weights.

    Args:
        peak: the most at any time.
        kept: at the end of the forward pass; what the backward pass waits for.
        largest_part: what one block keeps of it, which checkpointing has to compute again.
    """

    peak: int
    kept: int
    largest_part: int


def unet_pass(
    nets: Networks,
    batch: int,
    side: int,
    *,
    reference: bool = False,
    checkpoint: bool = False,
    backward: bool = False,
    personalized: bool = True,
) -> Pass:
    """Runs UNet, restorer and adapter on a latent and counts.

    Args:
        nets: on fake or real tensors.
        batch: latents.
        side: of the latents.
        reference: whether the blocks also attend to a reference, as in a part of the training.
        checkpoint: as in the training.
        backward: whether to run the backward pass, too; not possible on a fake GPU.
        personalized: whether the adapter takes part.
    """
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    from pfstorer_core.host.patch.applied import AppliedIdentity
    from pfstorer_core.host.patch.bare_unet import restorer_options
    from pfstorer_core.host.patch.handlers import run_res_block, run_transformer
    from pfstorer_core.host.sites import PATCH

    dtype = next(nets.unet.parameters()).dtype
    place: dict[str, Any] = {"device": next(nets.unet.parameters()).device}
    trained = next(nets.adapter.parameters()).requires_grad
    x, lq = (torch.zeros(batch, 4, side, side, **place) for _ in range(2))
    if not trained:
        x, lq = x.to(dtype), lq.to(dtype)
    context = torch.zeros(batch, PROMPT_TOKENS, nets.context_dim, dtype=x.dtype, **place)
    y = None
    if nets.pooled_dim is not None:
        y = torch.zeros(batch, nets.pooled_dim, dtype=x.dtype, **place)
    timesteps = torch.zeros(batch, **place)
    shown = (torch.zeros(1, 4, side, side, dtype=x.dtype, **place),) if reference else ()
    identity = AppliedIdentity(
        nets.adapter,
        references=shown,
        reference_context=context[:1],
        reference_pooled=() if y is None else tuple(y[:1] for _ in shown),
    )
    people = [identity] if personalized else []
    options = restorer_options(nets.unet, nets.restorer, lq, people, checkpoint)
    parts: list[int] = []
    known = [*tensors(nets.unet, nets.restorer, nets.adapter), x, lq, context, timesteps, *shown]
    known += [] if y is None else [y]
    memory = LiveMemory(known)

    def counted(handler: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any) -> Tensor:
            before = memory.now
            out = handler(*args)
            parts.append(memory.now - before)
            return out

        return run

    handlers = [(ResBlock, counted(run_res_block)), (SpatialTransformer, counted(run_transformer))]
    options["patches"] = {PATCH: handlers}
    with memory:
        out = nets.unet(x, timesteps, context, y, transformer_options=options)
        kept = memory.now
        if backward:
            out.float().square().mean().backward()
    return Pass(memory.peak, kept, max(parts))


@contextmanager
def fake_gpu(autocast: bool) -> Iterator[None]:
    """Tensors made inside have sizes and no values; those of a GPU need none.

    Args:
        autocast: to bf16, as the training runs.
    """
    with FakeTensorMode(), FusedAttention():
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", autocast)
        try:
            yield
        finally:
            torch.clear_autocast_cache()
            torch.set_autocast_enabled("cuda", False)


def decoder(side: int, dtype: torch.dtype) -> tuple[int, int]:
    """Returns the bytes that decoding a latent of a side takes, weights aside, and the weights'."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.model import pytorch_attention

    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.no_grad(), fake_gpu(False), torch.device("cuda"):
            vae = AutoencoderKL(ddconfig=VAE, embed_dim=4)
            vae.decoder.mid.attn_1.optimized_attention = pytorch_attention  # as on a GPU
            latent = torch.zeros(1, 4, side, side)
            memory = LiveMemory([*tensors(vae), latent])
            with memory:
                vae.decode(latent)
            return memory.peak, weights(vae)
    finally:
        torch.set_default_dtype(usual)
