"""The loop that all trainings share: accelerate, EMA, schedule, log, resume, samples."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import PFStorerError
from .capture import Captured
from .devices import make_accelerator, own_accelerate_state
from .optimizers import Optimizers
from .state import TrainedWeights, load_state, locked, save_state

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

log = logging.getLogger(__name__)

# (model, step generator) -> (loss to minimise, named scalars for the log)
Objective = Callable[[nn.Module, torch.Generator], tuple[Tensor, dict[str, Tensor]]]
Sampler = Callable[[nn.Module], Tensor]  # model with EMA weights -> (3, H, W) sheet in [0, 1]
StepReport = Callable[[int, dict[str, float]], None]  # steps done, the last one's scalars

# of gradients in fp16, which begins at 2**16 and is halved at each step that overflows
_SMALLEST_SCALE = 1.0


@dataclass(frozen=True)
class LoopConfig:
    """Settings of one training.

    Attributes:
        steps: optimiser steps in all (a resumed run counts the steps before).
        optimizer: "adamw", or "muon" for networks trained from nothing.
        learning_rate, warmup_steps, schedule: peak rate, linear warm-up, diffusers schedule name.
        weight_decay, max_grad_norm: decay and the norm that gradients are clipped to.
        ema_decay: decay of the averaged weights, which are the result; warmed up as in diffusers.
        mixed_precision: "no", "bf16" or "fp16".
        compile: torch.compile the model (one graph; worth it on long runs).
        capture: on CUDA, capture forward and backward once and replay them, so that the GPU does
            not wait for launches. The first call's shapes are those of all; other calls, in
            samples, run as usual.
        check_every: steps between two looks at loss and gradients. A look waits for the device;
            what is not finite ends the run there, with the last saved state.
        seed: the run is a function of it.
        log_every, sample_every, save_every: intervals in steps; 0 turns samples or saving off.
    """

    steps: int
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    schedule: str = "cosine"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "no"
    compile: bool = False
    capture: bool = False
    check_every: int = 1
    seed: int = 0
    log_every: int = 50
    sample_every: int = 1000
    save_every: int = 500

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PFStorerError(f"Training needs at least one step, got {self.steps}.")
        if not 0 <= self.ema_decay < 1:
            raise PFStorerError(f"The EMA decay must be in [0, 1), got {self.ema_decay}.")
        if self.check_every < 1:
            raise PFStorerError(f"check_every is {self.check_every}; give at least 1.")


def step_generator(seed: int, step: int, process: int) -> torch.Generator:
    """All randomness of one step: a resumed run then repeats what an uninterrupted one does."""
    mixed = (
        seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + process * 0x94D049BB133111EB
    ) & (2**63 - 1)
    return torch.Generator().manual_seed((mixed ^ (mixed >> 29)) & (2**63 - 1))


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A step's generator on the training's device, so that nothing is drawn on the CPU for it."""
    if device == generator.device:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def fit(
    model: nn.Module,
    objective: Objective,
    config: LoopConfig,
    folder: Path,
    *,
    sample: Sampler | None = None,
    max_seconds: float | None = None,
    on_step: StepReport | None = None,
    kept: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    log_to_files: bool = True,
    on_warning: Callable[[str], None] | None = None,
) -> bool:
    """Trains what requires gradients in `model` and leaves it with the averaged (EMA) weights.

    State is kept in `folder/state` and taken up when it is there; the log goes to `folder/log`
    (TensorBoard), sheets to `folder/samples`. What `objective` or `on_step` raises, an interruption
    or a lack of memory for instance, ends the run with its state saved and the averaged weights in
    the model. A state that cannot be saved does not end it.

    Args:
        model: called as `objective` does; wrapped by accelerate for several devices.
        objective: draws its batch with the given generator and returns the loss.
        config: settings; stored with the state, and a resumed run must have the same seed.
        folder: where the run lives.
        sample: draws a sheet with the averaged weights.
        max_seconds: stop (with state saved) once the run has taken this long; None trains to the
            end.
        on_step: is told of every step that is looked at (`check_every`).
        kept: further objects with `state_dict` and `load_state_dict` to keep in the state.
        device: where to train; None leaves it to accelerate.
        log_to_files: whether to write log and sheets.
        on_warning: is told once if the state cannot be saved; the log is each time.

    Returns:
        Whether all steps are done.

    Raises:
        PFStorerError: the folder holds a run of another seed or one that goes on in another
            process, the device does not train in the precision, or the loss or the gradients are
            not finite, in fp16 however small they are scaled; the weights are then those of the
            step before.
    """
    # of several processes that train together, the first writes
    writes = int(os.environ.get("RANK", "0")) == 0
    with own_accelerate_state(), locked(folder) if writes else contextlib.nullcontext():
        return _fit(
            model,
            objective,
            config,
            folder,
            sample,
            max_seconds,
            on_step or (lambda step, scalars: None),
            dict(kept or {}),
            device,
            log_to_files,
            on_warning or (lambda sentence: None),
        )


def _fit(
    model: nn.Module,
    objective: Objective,
    config: LoopConfig,
    folder: Path,
    sample: Sampler | None,
    max_seconds: float | None,
    on_step: StepReport,
    kept: dict[str, Any],
    device: torch.device | None,
    log_to_files: bool,
    on_warning: Callable[[str], None],
) -> bool:
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from torchvision.utils import save_image

    start_time = time.monotonic()
    accelerator = make_accelerator(
        device,
        mixed_precision=config.mixed_precision,
        log_with="tensorboard" if log_to_files else None,
        project_dir=folder,
        dynamo_backend="inductor" if config.compile else "no",
    )
    accelerator.init_trackers("log")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.capture and accelerator.device.type == "cuda" and accelerator.num_processes == 1:
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}
        wrapped = Captured(model.to(accelerator.device), precision[config.mixed_precision])
    else:
        wrapped = accelerator.prepare(model)
    optimizers = Optimizers(model, config.optimizer, config.learning_rate, config.weight_decay)
    scaler = accelerator.scaler  # of fp16, else None
    schedules = [
        get_scheduler(
            config.schedule,
            optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=config.steps,
        )
        for optimizer in optimizers.all
    ]
    ema = EMAModel(parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.8, foreach=True)

    parts: dict[str, Any] = {"model": TrainedWeights(model), "ema": ema, **kept}
    if scaler is not None:
        parts["scaler"] = scaler
    for k, (optimizer, schedule) in enumerate(zip(optimizers.all, schedules, strict=True)):
        parts |= {f"optimizer_{k}": optimizer, f"schedule_{k}": schedule}
    told: set[str] = set()

    def keep(goes_on: bool = False) -> None:
        if not accelerator.is_main_process:
            return
        try:
            save_state(folder / "state", parts, step, {"config": asdict(config)})
        except PFStorerError as error:  # hours of training are worth more than their state
            sentence = str(error)
            if goes_on:
                sentence += " The training goes on, but cannot be taken up after a stop."
            log.warning("%s", sentence)
            if str(error) not in told:
                told.add(str(error))
                on_warning(sentence)

    step = load_state(folder / "state", parts, config.seed) if (folder / "state").exists() else 0
    ema.to(accelerator.device)  # a state brings it back on the CPU
    progress = tqdm(
        total=config.steps,
        initial=step,
        disable=not accelerator.is_local_main_process,
        mininterval=10,
    )
    running: dict[str, Tensor] = {}
    since = 0
    if sample and accelerator.is_main_process and step >= config.steps:
        # an interruption after the last step left no sheet
        _with_average(ema, model, parameters, sample)
    while step < config.steps:
        looks = _due(config.check_every, step + 1, config)
        touched = False  # whether anything of this step has reached the weights
        try:
            loss, scalars = objective(
                wrapped, step_generator(config.seed, step, accelerator.process_index)
            )
            if looks:
                _check_finite("loss", loss, step)
            accelerator.backward(loss)
            # accelerate's own wrappers would update the scale once per optimizer
            if scaler is not None:
                for optimizer in optimizers.all:
                    scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            if looks:
                _check_gradients(norm, scaler, step)
            touched = True
            for optimizer, schedule in zip(optimizers.all, schedules, strict=True):
                if scaler is None:
                    optimizer.step()
                # Clipping by such a norm spoils all gradients, and the scaler knows only of those
                # of one optimizer.
                elif math.isfinite(float(norm)):
                    scaler.step(optimizer)
                schedule.step()
            if scaler is not None:
                scaler.update()
            model.zero_grad(set_to_none=True)
            ema.step(parameters)
        except BaseException:
            model.zero_grad(set_to_none=True)
            if step and not touched:
                keep()
            ema.copy_to(parameters)
            raise
        step, since = step + 1, since + 1
        found = {**scalars, "loss": loss, "grad_norm": torch.as_tensor(norm)}
        for name, value in found.items():
            running[name] = running.get(name, torch.zeros_like(value)) + value.detach()
        progress.update()
        if step % config.log_every == 0 or step == config.steps:
            means = {name: float(total) / since for name, total in running.items()}
            accelerator.log({**means, "learning_rate": schedules[0].get_last_lr()[0]}, step=step)
            progress.set_postfix({k: f"{v:.4f}" for k, v in means.items()})
            running, since = {}, 0
        out_of_time = max_seconds is not None and time.monotonic() - start_time > max_seconds
        try:
            if looks:
                on_step(step, {name: float(value.detach()) for name, value in found.items()})
            if sample and accelerator.is_main_process and _due(config.sample_every, step, config):
                sheet = _with_average(ema, model, parameters, sample)
                if log_to_files:
                    (folder / "samples").mkdir(exist_ok=True)
                    save_image(sheet, folder / "samples" / f"{step:06d}.png")
        except BaseException:
            keep()
            ema.copy_to(parameters)
            raise
        due = _due(config.save_every, step, config)
        if due or out_of_time or step == config.steps:
            keep(goes_on=not out_of_time and step < config.steps)
        if out_of_time:
            break
    progress.close()
    ema.copy_to(parameters)
    accelerator.end_training()
    return step >= config.steps


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


def _with_average(
    ema: EMAModel, model: nn.Module, parameters: list[nn.Parameter], sample: Sampler
) -> Tensor:
    """Samples while the model has its averaged weights, in evaluation mode."""
    ema.store(parameters)
    ema.copy_to(parameters)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return sample(model)
    finally:
        model.train(training)
        ema.restore(parameters)


def _due(interval: int, step: int, config: LoopConfig) -> bool:
    return interval > 0 and (step % interval == 0 or step == config.steps)
