"""SUPIR of ComfyUI's core as a restorer: it steers the UNet by hooks of its own."""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ops import disable_weight_init
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import PFStorerError
from ...restorers.info import RestorerInfo
from ...restorers.steering import Steering

try:
    from comfy.ldm.supir.supir_modules import ZeroCrossAttn
    from comfy.ldm.supir.supir_patch import SUPIRPatch
except ImportError:  # older versions have no SUPIR
    SUPIRPatch = ZeroCrossAttn = None

# How the name begins of its function that pulls results towards the LQ image.
_CENTRED = "SUPIRApply."
_CENTRE = "x_center"  # what that function calls the latent


def supir_hooks(options: dict[str, Any]) -> Any:
    """Returns the `SUPIRPatch` of transformer options, None without one.

    Raises:
        PFStorerError: there are several.
    """
    entries = [x for hooks in options.get("patches", {}).values() for x in hooks]
    owners = {id(owner): owner for owner in map(_owner, entries) if owner is not None}
    if len(owners) > 1:
        raise PFStorerError("The MODEL has SUPIR twice; leave one 'Apply SUPIR Patch' out.")
    return next(iter(owners.values()), None)


class SupirRestorer(Steering):
    """SUPIR in a MODEL, which modulates no block: identities alone are ours.

    Args:
        info: description.
        hooks: the `SUPIRPatch` that `SUPIRApply` hung on the MODEL.
    """

    def __init__(self, info: RestorerInfo, hooks: Any) -> None:
        super().__init__(info)
        self.hooks = hooks

    @property
    def network(self) -> Any:
        """Control network and adapters of SUPIR, a module of the host."""
        return self.hooks.model_patch.model

    @property
    def latent_channels(self) -> int:
        """Channels of the LQ latent."""
        return int(self.network.control_model.input_hint_block[0].in_channels)

    @property
    def levels(self) -> int:
        """It has no feature maps for us."""
        return 0

    @property
    def site_channels(self) -> dict[str, int]:
        """It modulates no residual block."""
        return {}

    def forward(self, lq_latent: Tensor, timesteps: Tensor) -> Sequence[Tensor]:
        """Returns its feature maps: none."""
        return ()

    def modulate(self, site: str, h: Tensor, features: Tensor) -> Tensor:
        """Returns the features of a residual block as they are."""
        return h

    def hooked(
        self, options: dict[str, Any], lq_latent: Tensor | None, checkpoint: bool
    ) -> dict[str, Any]:
        """Returns options in which SUPIR steers from an LQ latent, for one forward alone.

        SUPIR keeps what it computes in its hooks, so that those of a tile are its own.
        """
        if lq_latent is None:
            return options
        old = supir_hooks(options)
        if old is None:
            raise PFStorerError(
                "SUPIR is gone from the MODEL; put no node that removes patches behind 'Load Base "
                "Restorer'."
            )
        new = copy.copy(old)
        new.hint_latent, new.cached_features = lq_latent, None
        patches = {
            name: [_moved(hook, new) if _owner(hook) is old else hook for hook in hooks]
            for name, hooks in options["patches"].items()
        }
        return {**options, "patches": patches}

    def copy_for_training(self, dtype: torch.dtype) -> Steering:
        """Returns a copy on the CPU that gradients pass through."""
        source = self.network
        with torch.inference_mode(False):  # see `BaseRestorer.take`
            network = type(source)(device="meta", dtype=dtype, operations=disable_weight_init)
            weights = {k: v.to("cpu", dtype, copy=True) for k, v in source.state_dict().items()}
            network.load_state_dict(weights, assign=True)
        return TrainableSupir(self.info, network)


class TrainableSupir(SupirRestorer):
    """SUPIR beside a bare UNet, for trainings: nothing of it is trained.

    It computes in the type of its weights, without autocast, as in ComfyUI. Its control network,
    whose features do not depend on identities, keeps nothing for the backward pass; its adapters,
    which the features of the UNet pass through, do. Nothing can be kept between steps, since all
    of it depends on the noise. It steers with full strength.

    Args:
        info: description.
        network: SUPIR with layers of `torch.nn`.
    """

    def __init__(self, info: RestorerInfo, network: nn.Module) -> None:
        super().__init__(info, None)
        self._network = network

    @property
    def network(self) -> Any:
        """Control network and adapters."""
        return self._network

    def hooked(
        self, options: dict[str, Any], lq_latent: Tensor | None, checkpoint: bool
    ) -> dict[str, Any]:
        """Returns options in which SUPIR steers from an LQ latent, for one forward alone."""
        held = types.SimpleNamespace(control_model=self._control)
        adapters = [functools.partial(_adapt, x, checkpoint) for x in self.network.project_modules]
        hooks = SUPIRPatch(types.SimpleNamespace(model=held), adapters, lq_latent, 1.0, 1.0)
        collected = _Collected(options["patches"])
        hooks.register(collected)
        return {**options, "patches": collected.patches}

    @torch.no_grad()
    def _control(self, hint: Tensor, timesteps: Tensor, *others: Tensor) -> list[Tensor]:
        dtype = next(self.network.control_model.parameters()).dtype
        hint, *cast = (x.to(dtype) for x in (hint, *others))
        with _without_autocast(hint.device):
            found: list[Tensor] = self.network.control_model(hint, timesteps, *cast)
        return found


class _Collected:
    """Takes the patches that a `SUPIRPatch` registers, in place of a ModelPatcher."""

    def __init__(self, patches: Mapping[str, Sequence[Any]]) -> None:
        self.patches = {name: list(hooks) for name, hooks in patches.items()}

    def set_model_patch(self, patch: Any, name: str) -> None:
        self.patches.setdefault(name, []).append(patch)

    def set_model_output_block_patch(self, patch: Any) -> None:
        self.set_model_patch(patch, "output_block_patch")


def _adapt(
    module: Any, recompute: bool, features: Tensor, *given: Tensor, control_scale: float
) -> Tensor:
    """Runs one of SUPIR's adapters on features of the control network and of the UNet."""
    dtype = next(module.parameters()).dtype
    args = [x.to(dtype) for x in (features, *given)]
    # The host's choice of attention may have no gradient.
    run = functools.partial(_attend, module) if isinstance(module, ZeroCrossAttn) else module
    with _without_autocast(features.device):
        if recompute:
            return checkpoint(run, *args, control_scale=control_scale, use_reentrant=False)
        return run(*args, control_scale=control_scale)


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _attend(module: Any, features: Tensor, x: Tensor, *, control_scale: float) -> Tensor:
    """Returns what `ZeroCrossAttn` does, by PyTorch's attention."""
    inner = module.attn
    tokens = module.norm1(x).flatten(2).transpose(1, 2)  # (B, H * W, C)
    shown = module.norm2(features).flatten(2).transpose(1, 2)
    out = attention_pytorch(inner.to_q(tokens), inner.to_k(shown), inner.to_v(shown), inner.heads)
    return x + inner.to_out(out).transpose(1, 2).unflatten(2, x.shape[2:]) * control_scale


def centre_function(model: Any) -> Callable[[dict[str, Any]], Tensor] | None:
    """Returns the function that pulls a MODEL's results towards SUPIR's LQ image, if it has one."""
    functions = model.model_options.get("sampler_post_cfg_function", [])
    return next((x for x in functions if _is_centred(x)), None)


def without_centre(model: Any) -> None:
    """Takes that function off a MODEL of our own: its picture is another one from now on."""
    functions = model.model_options.get("sampler_post_cfg_function", [])
    if any(map(_is_centred, functions)):
        kept = [x for x in functions if not _is_centred(x)]
        model.model_options["sampler_post_cfg_function"] = kept


def recentred(function: Any, centre: Tensor) -> Any:
    """Returns that function with another picture's latent (B, C, H, W) to pull towards.

    Raises:
        PFStorerError: this version of ComfyUI writes it in another way.
    """
    names = function.__code__.co_freevars
    if _CENTRE not in names:
        raise PFStorerError(
            "How this ComfyUI's SUPIR holds on to the picture is not known to PFStorer; set "
            "restore_cfg to 0 in 'Apply SUPIR Patch'."
        )
    cells = (
        types.CellType(centre) if name == _CENTRE else cell
        for name, cell in zip(names, function.__closure__, strict=True)
    )
    made = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, None, tuple(cells)
    )
    made.__qualname__ = function.__qualname__
    return made


def supir_vae(restorer: Steering, vae: Any) -> Any:
    """Returns the VAE that encodes LQ images: SUPIR's file may bring an encoder for them.

    Args:
        restorer: of the MODEL; another than SUPIR takes the VAE as it is.
        vae: ComfyUI's VAE; stays as it is.
    """
    if not isinstance(restorer, SupirRestorer):
        return vae
    weights = getattr(restorer.network, "denoise_encoder_sd", None)
    if not weights:
        return vae
    encoder = copy.copy(vae)
    encoder.patcher = vae.patcher.clone()
    patches = {f"encoder.{name}": (weight,) for name, weight in weights.items()}
    encoder.patcher.add_patches(patches, strength_patch=1.0, strength_model=0.0)
    return encoder


def _owner(hook: Any) -> Any:
    """The `SUPIRPatch` whose method a hook is; hooks for layers come as (class, method)."""
    method = hook[1] if isinstance(hook, tuple) else hook
    owner = getattr(method, "__self__", None)
    return owner if SUPIRPatch is not None and isinstance(owner, SUPIRPatch) else None


def _moved(hook: Any, owner: Any) -> Any:
    if isinstance(hook, tuple):
        return (hook[0], _moved(hook[1], owner))
    return types.MethodType(hook.__func__, owner)


def _is_centred(function: Any) -> bool:
    return str(getattr(function, "__qualname__", "")).startswith(_CENTRED)
