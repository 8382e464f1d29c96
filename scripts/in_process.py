"""Makes ComfyUI's modules and the core importable, for scripts that run in its Python."""

from __future__ import annotations

import asyncio
import sys

from setup_host import REPO, find_comfyui


def has_gpu() -> bool:
    """Whether torch has a device beside the CPU: of NVIDIA, AMD, Intel or Apple."""
    import torch  # seconds, and of no use to who only wants the rest

    known = getattr(torch, "accelerator", None)  # older than torch 2.6
    if known is None:
        return torch.cuda.is_available() or torch.backends.mps.is_available()
    return bool(known.is_available())


def use_comfyui(progress_bars: bool = True) -> None:
    """Puts ComfyUI first and this repository last on the path, and chooses the GPU if there is one.

    ComfyUI first: `import nodes` must be its module, not our folder. Ends the script with a
    sentence where no ComfyUI is found.

    Args:
        progress_bars: whether ComfyUI draws one for each sampling.
    """
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("error: no ComfyUI found; run scripts/setup_host.py or set COMFYUI_PATH")
    sys.path.insert(0, str(comfyui))
    sys.path.append(str(REPO))
    from comfy.cli_args import args

    args.cpu = not has_gpu()
    # As early as in ComfyUI's own start: older ones' `nodes` puts another `utils` before this one.
    import utils  # noqa: F401

    if not progress_bars:
        import comfy.utils

        comfy.utils.set_progress_bar_enabled(False)


def start_prompt_server() -> asyncio.AbstractEventLoop:
    """Does what ComfyUI's main.py has done by the time that it comes to custom nodes.

    `use_comfyui` comes first. Returns the server's loop, which does not run yet.
    """
    import execution  # noqa: F401
    import server
    import utils.extra_config  # noqa: F401

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    server.PromptServer(loop)
    return loop
