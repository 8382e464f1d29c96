"""Prompts in API format changed for a test, and what their runs gave."""

import copy
import io
from typing import Any

import numpy as np
from comfyui_client import Client, Run
from PIL import Image

# What else would take minutes.
SHORT_TRAINING = {"steps": 6, "views_per_photo": 2, "batch": 1, "size": 64, "preview_every": 0}


def changed(prompt: dict[str, Any], node: str, **inputs: Any) -> dict[str, Any]:
    """Returns the prompt with other inputs of one node."""
    prompt = copy.deepcopy(prompt)
    prompt[node]["inputs"] |= inputs
    return prompt


def pictures(client: Client, run: Run) -> dict[str, np.ndarray]:
    """Returns the pictures of each node that has some, (views, height, width, 3) in 0..255."""
    return {
        node: np.stack(
            [np.asarray(Image.open(io.BytesIO(client.view(i)))) for i in output["images"]]
        ).astype(float)
        for node, output in run.outputs.items()
        if "images" in output
    }
