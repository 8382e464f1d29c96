"""This plugin as ComfyUI's loader imports it."""

import importlib
from types import ModuleType
from typing import Any

BUNDLED = "bundled in restorer"  # as checkpoint of Load Base Restorer
UNIQUE_ID = "7"  # of a node in a workflow
RESTORE = {  # required inputs of Tiled Restore beside model, VAE and image
    "scale": 1.0,
    "longest_side": 0,
    "seed": 0,
    "steps": 2,
    "cfg": 1.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "denoise": 1.0,
    "start": "LQ image",
    "color_fix": "wavelet",
}


class Pack:
    """The plugin's modules and nodes in this process.

    Its modules have other names than those that `import pfstorer_core` gives, so their classes are
    others too: compare errors by what `module` returns, or as ValueError.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def module(self, path: str) -> ModuleType:
        """Returns one of the pack's modules, for example `module("pfstorer_core.errors")`."""
        return importlib.import_module(f"{self.name}.{path}")

    def node(self, node_id: str) -> Any:
        """Returns the class of one of the pack's nodes as ComfyUI runs it, with hidden inputs."""
        import nodes

        node = nodes.NODE_CLASS_MAPPINGS[node_id]
        return node.PREPARE_CLASS_CLONE({"hidden_inputs": {"unique_id": UNIQUE_ID}})
