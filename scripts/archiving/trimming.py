"""Custom node of a worker's ComfyUI, which gives freed memory back before each photo.

Photos of many sizes leave pieces all over glibc's heaps, which would grow for hours.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}
# of glibc alone
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def _give_back(prompt: dict[str, Any]) -> dict[str, Any]:
    _trim(0)
    return prompt


if _trim is not None:
    PromptServer.instance.add_on_prompt_handler(_give_back)
