"""Steps of a node, as ComfyUI shows them."""

from typing import Any

import comfy.model_management as mm
import comfy.utils

from ..pfstorer_core.measures.comparison import Progress


def progress_bar(node_id: Any) -> Progress:
    """Returns what shows steps as the node's bar, and ends it where the user stops the prompt."""
    bar = comfy.utils.ProgressBar(1, node_id=node_id)

    def shown(done: int, total: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return shown
