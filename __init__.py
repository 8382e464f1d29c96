"""PFStorer for ComfyUI: restores degraded photos of people, and keeps their identity."""

from comfy_api.latest import ComfyExtension, io

WEB_DIRECTORY = "./nodes/web"


class PFStorerExtension(ComfyExtension):
    """The plugin as ComfyUI sees it."""

    async def on_load(self) -> None:
        """Registers the plugin's model folders."""
        from .pfstorer_core.host.load.folders import register_folders

        register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Returns the classes of all nodes."""
        from .nodes import NODES

        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    """Returns the extension; ComfyUI calls this once."""
    return PFStorerExtension()
