"""One run of the training loop: its steps, what it tells of them, and its state."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.utils import save_image
from tqdm import tqdm

from ..errors import PFStorerError
from .capture import Captured
from .devices import make_accelerator
from .loop import Hooks, LoopConfig, Objective, step_generator
from .optimizers import Optimizers
from .state import TrainedWeights, load_state, save_state

log = logging.getLogger(__name__)

# of gradients in fp16, which begins at 2**16 and is halved at each step that overflows
_SMALLEST_SCALE = 1.0
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}


class Run:
    """A training from where its folder's state is to its end, see `loop.fit`.

    Attributes:
        done: steps done, by this run and those that it goes on from.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        config: LoopConfig,
        folder: Path,
        hooks: Hooks,
    ) -> None:
        from diffusers.training_utils import EMAModel

        self.model, self.objective, self.config = model, objective, config
        self.folder, self.hooks = folder, hooks
        self._began = time.monotonic()
        self._told: set[str] = set()
        self._accelerator = make_accelerator(
            hooks.device,
            mixed_precision=config.mixed_precision,
            log_with="tensorboard" if hooks.log_to_files else None,
            project_dir=folder,
            dynamo_backend="inductor" if config.compile else "no",
        )
        self._accelerator.init_trackers("log")
        self._scaler = self._accelerator.scaler  # of fp16, else None
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._wrapped = self._wrap()
        self._optimizers = Optimizers(
            model, config.optimizer, config.learning_rate, config.weight_decay
        )
        self._schedules = _schedules(self._optimizers, config)
        self._ema = EMAModel(
            self._parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.8, foreach=True
        )
        self._parts = self._state_parts()
        state = folder / "state"
        self.done = load_state(state, self._parts, config.seed) if state.exists() else 0
        self._ema.to(self._accelerator.device)  # a state brings it back on the CPU
        self._pending = _Pending(self.done)

    def train(self) -> bool:
        """Trains to the end, or until time is up; returns whether all steps are done."""
        config, hooks = self.config, self.hooks
        progress = tqdm(
            total=config.steps,
            initial=self.done,
            disable=not self._accelerator.is_local_main_process,
            mininterval=10,
        )
        if self._draws and self.done >= config.steps:
            self.sample()  # an interruption after the last step left no sheet
        while self.done < config.steps:
            self.step()
            progress.update()
            if self.done % config.log_every == 0 or self.done == config.steps:
                progress.set_postfix({k: f"{v:.4f}" for k, v in self._log().items()})
            out_of_time = (
                hooks.max_seconds is not None and time.monotonic() - self._began > hooks.max_seconds
            )
            saves = out_of_time or self._due(config.save_every)
            draws = self._draws and self._due(config.sample_every)
            self._after_step(saves, draws)
            if saves:
                self.keep(goes_on=not out_of_time and self.done < config.steps)
            if out_of_time:
                break
        progress.close()
        self._ema.copy_to(self._parameters)
        self._accelerator.end_training()
        return self.done >= config.steps

    def step(self) -> None:
        """Takes one step; where it fails, weights and state are those of the step before."""
        looks = self._looks(self.done + 1)
        touched = False  # whether anything of this step has reached the weights
        try:
            generator = step_generator(self.config.seed, self.done, self._accelerator.process_index)
            loss, scalars = self.objective(self._wrapped, generator)
            if looks:
                _check_finite("loss", loss, self.done)
            self._accelerator.backward(loss)
            # accelerate's own wrappers would update the scale once per optimizer
            if self._scaler is not None:
                for optimizer in self._optimizers.all:
                    self._scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
            if looks:
                _check_gradients(norm, self._scaler, self.done)
            touched = True
            self._update(norm)
        except BaseException as error:
            self.model.zero_grad(set_to_none=True)
            self._pending.tell(self.hooks, raises=False)
            # what was found late may have reached the weights in a step that nobody looked at
            late = isinstance(error, PFStorerError) and self._interval > 1
            if self.done and not touched and not late:
                self.keep()
            self._ema.copy_to(self._parameters)
            raise
        self.done += 1
        self._pending.add({**scalars, "loss": loss, "grad_norm": torch.as_tensor(norm)})

    def keep(self, goes_on: bool = False) -> None:
        """Saves the state, or tells why that cannot be."""
        if not self._accelerator.is_main_process:
            return
        try:
            settings = {"config": asdict(self.config)}
            save_state(self.folder / "state", self._parts, self.done, settings)
        except PFStorerError as error:  # hours of training are worth more than their state
            sentence = str(error)
            if goes_on:
                sentence += " The training goes on, but cannot be taken up after a stop."
            log.warning("%s", sentence)
            if str(error) not in self._told:
                self._told.add(str(error))
                if self.hooks.on_warning is not None:
                    self.hooks.on_warning(sentence)

    def sample(self) -> Tensor:
        """Draws a sheet while the model has its averaged weights, in evaluation mode."""
        assert self.hooks.sample is not None
        self._ema.store(self._parameters)
        self._ema.copy_to(self._parameters)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                # accelerate lets the model itself compute in the precision
                captured = isinstance(self._wrapped, Captured)
                return self.hooks.sample(self._wrapped if captured else self.model)
        finally:
            self.model.train(training)
            self._ema.restore(self._parameters)

    def _wrap(self) -> nn.Module:
        device = self._accelerator.device
        if self.config.capture and device.type == "cuda" and self._accelerator.num_processes == 1:
            return Captured(self.model.to(device), _PRECISIONS[self.config.mixed_precision])
        wrapped: nn.Module = self._accelerator.prepare(self.model)
        return wrapped

    def _state_parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"model": TrainedWeights(self.model), "ema": self._ema}
        parts |= self.hooks.kept or {}
        if self._scaler is not None:
            parts["scaler"] = self._scaler
        pairs = zip(self._optimizers.all, self._schedules, strict=True)
        for k, (optimizer, schedule) in enumerate(pairs):
            parts |= {f"optimizer_{k}": optimizer, f"schedule_{k}": schedule}
        return parts

    def _update(self, norm: Tensor) -> None:
        for optimizer, schedule in zip(self._optimizers.all, self._schedules, strict=True):
            if self._scaler is None:
                optimizer.step()
            # Clipping by such a norm spoils all gradients, and the scaler knows only of those of
            # one optimizer.
            elif math.isfinite(float(norm)):
                self._scaler.step(optimizer)
            schedule.step()
        if self._scaler is not None:
            self._scaler.update()
        self.model.zero_grad(set_to_none=True)
        self._ema.step(self._parameters)

    def _after_step(self, saves: bool, draws: bool) -> None:
        try:
            if self._looks(self.done) or saves or draws:
                self._pending.tell(self.hooks)
            if draws:
                sheet = self.sample()
                if self.hooks.log_to_files:
                    (self.folder / "samples").mkdir(exist_ok=True)
                    save_image(sheet, self.folder / "samples" / f"{self.done:06d}.png")
        except BaseException:
            self.keep()
            self._ema.copy_to(self._parameters)
            raise

    def _log(self) -> dict[str, float]:
        means = self._pending.means()
        rate = self._schedules[0].get_last_lr()[0]
        self._accelerator.log({**means, "learning_rate": rate}, step=self.done)
        return means

    @property
    def _draws(self) -> bool:
        return self.hooks.sample is not None and bool(self._accelerator.is_main_process)

    @property
    def _interval(self) -> int:
        return 1 if self._accelerator.device.type == "cpu" else self.config.check_every

    def _looks(self, step: int) -> bool:
        """Whether loss and gradients of a step, counted from 1, are looked at.

        Those of a state or a sheet are: neither shall hold what is not finite.
        """
        config = self.config
        intervals = self._interval, config.save_every, config.sample_every
        return step == config.steps or any(n > 0 and step % n == 0 for n in intervals)

    def _due(self, interval: int) -> bool:
        return interval > 0 and (self.done % interval == 0 or self.done == self.config.steps)


class _Pending:
    """Scalars of steps that lie on the device until they are looked at."""

    def __init__(self, done: int) -> None:
        self._done = done  # steps told
        self._steps: list[dict[str, Tensor]] = []
        self._sums: dict[str, Tensor] = {}
        self._since = 0

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Takes a step's scalars."""
        found = {name: value.detach().float() for name, value in scalars.items()}
        self._steps.append(found)
        self._since += 1
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    def means(self) -> dict[str, float]:
        """Returns the means of the steps since the last call."""
        found = {name: float(total) / self._since for name, total in self._sums.items()}
        self._sums, self._since = {}, 0
        return found

    def tell(self, hooks: Hooks, raises: bool = True) -> None:
        """Reports the steps since the last call, all of them before what one report raises."""
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        names = list(steps[0])
        table = torch.stack([torch.stack([step[name] for name in names]) for step in steps])
        raised: BaseException | None = None
        for values in table.tolist():
            self._done += 1
            if hooks.on_step is None:
                continue
            try:
                hooks.on_step(self._done, dict(zip(names, values, strict=True)))
            except BaseException as error:
                raised = raised or error
        if raised is not None and raises:
            raise raised


def _schedules(optimizers: Optimizers, config: LoopConfig) -> list[Any]:
    from diffusers.optimization import get_scheduler

    return [
        get_scheduler(
            config.schedule,
            optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=config.steps,
        )
        for optimizer in optimizers.all
    ]


def _check_finite(name: str, value: Tensor, step: int) -> None:
    number = float(value.detach())
    if not math.isfinite(number):
        raise PFStorerError(
            f"The {name} was {number} at step {step + 1}: lower the learning rate or choose "
            "the precision 'no' (float32)."
        )


def _check_gradients(norm: Tensor, scaler: torch.amp.GradScaler | None, step: int) -> None:
    # A scaler leaves such steps out and scales less, which helps if it was an overflow.
    if scaler is None or scaler.get_scale() <= _SMALLEST_SCALE:
        _check_finite("norm of the gradients", norm, step)
