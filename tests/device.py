"""What tests may expect of the device that ComfyUI computes on in this process.

Laws are tested in exact arithmetic: float32 throughout, no TF32, attention as plain products, and
kernels that give the same each time. The types that ComfyUI chooses itself are those of the tests
of a whole server. What is tested in another type has the tolerance of that type,
`golden_weights.rounding_limit`.
"""

import os
from collections.abc import Callable
from typing import Any

import torch


def compute_exactly() -> None:
    """Makes ComfyUI and torch compute exactly on a GPU; before the first tensor lies there."""
    import comfy.ops
    from comfy.cli_args import args
    from torch.nn.attention import SDPBackend

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # else cuBLAS may add up in any order
    args.fp32_unet = args.fp32_vae = args.fp32_text_enc = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    # The fused kernels of attention add up their gradients in any order, and refuse odd sizes.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    if hasattr(comfy.ops, "SDPA_BACKEND_PRIORITY"):  # which the host puts before those choices
        comfy.ops.SDPA_BACKEND_PRIORITY[:] = [SDPBackend.MATH]
    # a few kernels have no such form, and none of them lies on the way of a training's gradients
    torch.use_deterministic_algorithms(True, warn_only=True)


def free_memory(count: float) -> Callable[..., Any]:
    """Returns a stand-in for `comfy.model_management.get_free_memory` that finds `count` bytes."""

    def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
        return (count, count) if torch_free_too else count

    return get_free_memory
