"""Where a training stands, told as it goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...training.loop import Sampler
from ...training.report import report_sheet
from ..feedback import TrainingProgress

logger = logging.getLogger(__name__)


class Told:
    """Whom a training tells what: progress, and what is wrong with the photos.

    Args:
        on_progress: is told of every view and step; what it raises ends the run.
        on_warning: is told what is wrong; the log is always.
    """

    def __init__(
        self,
        on_progress: Callable[[TrainingProgress], None] | None,
        on_warning: Callable[[str], None] | None,
    ) -> None:
        self.report = on_progress or (lambda progress: None)
        self.warn_beside_log = on_warning  # for what logs its warnings itself

    def warn(self, sentence: str) -> None:
        """Tells a warning."""
        logger.warning("%s", sentence)
        if self.warn_beside_log is not None:
            self.warn_beside_log(sentence)


class LossHistory:
    """Losses of all steps, kept in the training's state."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the losses."""
        return {"loss": torch.tensor(self.values, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes the losses up."""
        self.values = state["loss"].tolist()


class StepReports:
    """Turns the loop's reports into progress, with time left and sheets."""

    def __init__(
        self, report: Callable[[TrainingProgress], None], losses: LossHistory, steps: int
    ) -> None:
        self.report, self.losses, self.steps = report, losses, steps
        self._first: tuple[int, float] | None = None
        self._left: float | None = None

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        now = time.monotonic()
        self.losses.values.append(scalars["loss"])
        if self._first is None:
            self._first = step, now
        else:
            first, then = self._first
            self._left = (now - then) / (step - first) * (self.steps - step)
        self.report(TrainingProgress("training", step, self.steps, scalars["loss"], self._left))

    def sampler(self, pictures: Sampler) -> Sampler:
        """Returns what draws a sheet and reports it."""

        def draw(network: nn.Module) -> Tensor:
            sheet = report_sheet(self.losses.values, self.steps, pictures(network))
            done = len(self.losses.values)
            loss = self.losses.values[-1] if done else None
            self.report(
                TrainingProgress("training", done, self.steps, loss, self._left, sheet=sheet.cpu())
            )
            return sheet

        return draw
