"""Shows in ComfyUI what runs: a training or a restoration."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import comfy.utils
from server import PromptServer
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

logger = logging.getLogger(__name__)

PREVIEW_SIZE = 768  # pixels, at most
_PAUSE = 0.5  # seconds between texts that only say how far a step is


class RestoreReport:
    """Collects what is worth telling of a restoration; shows and logs it.

    Args:
        node_id: unique id of the node that shows it; None shows nothing.
    """

    def __init__(self, node_id: Any = None) -> None:
        self.lines: list[str] = []
        self._node_id = None if node_id is None else str(node_id)
        self._pass = ""
        self._step, self._steps = 0, 0
        self._shown = self._began = 0.0

    def begin(self, number: int, passes: int, steps: int) -> None:
        """Notes that a pass of so many begins."""
        self._pass = f"Pass {number} of {passes}, " if passes > 1 else ""
        self._step, self._steps = 0, steps
        self._began = time.monotonic()

    def end(self) -> None:
        """Notes that the last pass is over."""
        self._pass = ""

    def line(self, text: str) -> None:
        """Adds a line that stays."""
        logger.info("Tiled Restore: %s", self._pass + text)
        self.lines.append(self._pass + text)
        self._show("")

    def add(self, lines: Iterable[str]) -> None:
        """Adds lines that stay."""
        for text in lines:
            self.line(text)

    def status(self, text: str) -> None:
        """Shows what is being done now."""
        self._show(self._pass + text)

    def step(self, done: int) -> None:
        """Notes the steps that are done."""
        self._step = done
        if done < self._steps:
            self.status(f"step {done + 1} of {self._steps}{self._left(done)}")

    def tiles(self, done: int, total: int) -> None:
        """Shows the tiles of the step that are done."""
        if time.monotonic() - self._shown > _PAUSE:
            step = min(self._step + 1, self._steps)
            left = self._left(step - 1 + done / total)
            self.status(f"step {step} of {self._steps}, tile {done} of {total}{left}")

    def _left(self, steps: float) -> str:
        """Says how long the rest of the pass takes, after so many steps of it."""
        seconds = (time.monotonic() - self._began) * (self._steps / steps - 1) if steps else 0.0
        return f", {_clock(seconds)} left" if seconds >= 1 else ""

    def _show(self, status: str) -> None:
        self._shown = time.monotonic()
        if self._node_id is not None:
            # First, because the node shows two lines or so.
            show_text(self._node_id, "\n".join(filter(None, [status, *self.lines])))


def show_text(node_id: str, text: str) -> None:
    """Shows a text in a node; does nothing where ComfyUI serves nobody."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id)


def show_lines(node_id: Any, lines: Sequence[str]) -> None:
    """Shows lines of text in a node, if there are any."""
    if lines and node_id is not None:
        show_text(str(node_id), "\n".join(lines))


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training stands.

    Args:
        stage: "views" while the photos are prepared, then "training", then "likeness" while it is
            measured how the person looks to the restorer.
        done: views, steps or batches done.
        total: of so many.
        loss: of the last step; None before.
        seconds_left: estimate; None where there is none yet.
        sheet: (3, H, W) in [0, 1], where there is a new one: LQ, now, loss curve, clean.
    """

    stage: str
    done: int
    total: int
    loss: float | None = None
    seconds_left: float | None = None
    sheet: Tensor | None = None


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
        show_text(self.node_id, "\n".join([*filter(None, [self._line]), *self._warnings]))


def _line(progress: TrainingProgress) -> str:
    if progress.stage == "views":
        return f"Preparing views of the photos: {progress.done} of {progress.total}"
    if progress.stage == "likeness":
        return f"Comparing the person with strangers: {progress.done} of {progress.total}"
    line = f"Step {progress.done} of {progress.total}"
    if progress.loss is not None:
        line += f", loss {progress.loss:.4f}"
    if progress.seconds_left is not None:
        line += f", {_clock(progress.seconds_left)} left"
    return line


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
