"""This plugin as ComfyUI's loader imports it."""

import importlib
from types import ModuleType
from typing import Any


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
        """Returns the class of one of the pack's nodes."""
        import nodes

        return nodes.NODE_CLASS_MAPPINGS[node_id]
