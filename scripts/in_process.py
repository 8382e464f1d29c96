"""Makes ComfyUI's modules and the core importable, for scripts that run in its Python."""

from __future__ import annotations

import sys

import torch
from setup_host import REPO, find_comfyui


def use_comfyui() -> None:
    """Puts ComfyUI first and this repository last on the path, and chooses the GPU if there is one.

    ComfyUI first: `import nodes` must be its module, not our folder. Ends the script with a
    sentence where no ComfyUI is found.
    """
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("error: no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH")
    sys.path.insert(0, str(comfyui))
    sys.path.append(str(REPO))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    # As early as in ComfyUI's own start: older ones' `nodes` puts another `utils` before this one.
    import utils  # noqa: F401
