"""Shows a training in ComfyUI while it runs, and lets the user stop it."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.utils
from server import PromptServer
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from .identity_training import TrainingProgress

PREVIEW_SIZE = 768  # pixels, at most


class NodeProgress:
    """Shows `TrainingProgress` as the node's progress bar, preview and line of text.

    Args:
        node_id: unique id of the node.
    """

    def __init__(self, node_id: Any) -> None:
        self.node_id = str(node_id)
        self.sheet: Tensor | None = None
        self._stage = ""
        self._warnings: list[str] = []
        self._line = ""

    def warn(self, sentence: str) -> None:
        """Keeps a sentence in view under the line of text."""
        self._warnings.append(sentence)
        self._show()

    def __call__(self, progress: TrainingProgress) -> None:
        """Shows where the training stands.

        Raises:
            InterruptProcessingException: the user stopped the prompt.
        """
        mm.throw_exception_if_processing_interrupted()
        preview = None
        if progress.sheet is not None:
            self.sheet = progress.sheet
            preview = ("JPEG", to_pil_image(progress.sheet.clamp(0, 1)), PREVIEW_SIZE)
        if progress.stage != self._stage:
            # a bar sends nothing until it has passed what it sent last
            self._stage = progress.stage
            self._bar = comfy.utils.ProgressBar(progress.total, node_id=self.node_id)
        self._bar.update_absolute(progress.done, progress.total, preview)
        line = _line(progress)
        if line != self._line:
            self._line = line
            self._show()

    def _show(self) -> None:
        server = getattr(PromptServer, "instance", None)  # unset where ComfyUI serves nobody
        if server is not None:
            text = "\n".join([*filter(None, [self._line]), *self._warnings])
            server.send_progress_text(text, self.node_id)


def _line(progress: TrainingProgress) -> str:
    if progress.stage == "views":
        return f"Preparing views of the photos: {progress.done} of {progress.total}"
    line = f"Step {progress.done} of {progress.total}"
    if progress.loss is not None:
        line += f", loss {progress.loss:.4f}"
    if progress.seconds_left is not None:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        line += f", {minutes}:{seconds:02d} left"
    return line
