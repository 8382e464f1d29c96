"""Loaders of a tiny Stable Diffusion XL and SUPIR, as custom nodes.

ComfyUI's own loaders know both in their true sizes alone, of 8 GB.
"""

import sys
from pathlib import Path
from typing import Any

PLUGIN = Path(__file__).parent / "comfyui-pfstorer"


def tiny_supir() -> Any:
    """Returns the module that makes them; imported where it is needed, as it takes its time."""
    for folder in (PLUGIN / "tests", PLUGIN):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    import tiny_supir

    return tiny_supir


class _Loader:
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}


class TinySDXL(_Loader):
    """In place of Load Checkpoint."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    def load(self) -> tuple[Any, Any, Any]:
        model, clip, vae = tiny_supir().sdxl()
        return model, clip, vae


class TinySUPIR(_Loader):
    """In place of Load Model Patch."""

    RETURN_TYPES = ("MODEL_PATCH",)

    def load(self) -> tuple[Any]:
        return (tiny_supir().model_patch(),)


NODE_CLASS_MAPPINGS: dict[str, Any] = {"TinySDXL": TinySDXL, "TinySUPIR": TinySUPIR}
