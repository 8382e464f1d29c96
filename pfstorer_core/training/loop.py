"""The loop that all trainings share: accelerate, EMA, schedule, log, resume, samples."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PFStorerError
from .devices import own_accelerate_state
from .state import locked

# (model, step generator) -> (loss to minimise, named scalars for the log)
Objective = Callable[[nn.Module, torch.Generator], tuple[Tensor, dict[str, Tensor]]]
Sampler = Callable[[nn.Module], Tensor]  # model with EMA weights -> (3, H, W) sheet in [0, 1]
StepReport = Callable[[int, dict[str, float]], None]  # steps done, the last one's scalars


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
            what is not finite ends the run there, with the last saved state. On a CPU, where none
            waits, each step is looked at.
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


@dataclass(frozen=True)
class Hooks:
    """What a run is told beside its settings, and what it tells.

    Attributes:
        sample: draws a sheet with the averaged weights.
        max_seconds: stop (with state saved) once the run has taken this long; None trains to the
            end.
        on_step: is told of every step, once it has been looked at (`check_every`).
        kept: further objects with `state_dict` and `load_state_dict` to keep in the state.
        device: where to train; None leaves it to accelerate.
        log_to_files: whether to write log and sheets.
        on_warning: is told once if the state cannot be saved; the log is each time.
    """

    sample: Sampler | None = None
    max_seconds: float | None = None
    on_step: StepReport | None = None
    kept: Mapping[str, Any] | None = None
    device: torch.device | None = None
    log_to_files: bool = True
    on_warning: Callable[[str], None] | None = None


def fit(
    model: nn.Module,
    objective: Objective,
    config: LoopConfig,
    folder: Path,
    hooks: Hooks | None = None,
    **given: Any,
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
        hooks: the rest, which may be given by name as well.

    Returns:
        Whether all steps are done.

    Raises:
        PFStorerError: the folder holds a run of another seed or one that goes on in another
            process, the device does not train in the precision, or the loss or the gradients are
            not finite, in fp16 however small they are scaled; the weights are then those of the
            step before.
    """
    from .run import Run

    # of several processes that train together, the first writes
    writes = int(os.environ.get("RANK", "0")) == 0
    with own_accelerate_state(), locked(folder) if writes else contextlib.nullcontext():
        run = Run(model, objective, config, folder, replace(hooks or Hooks(), **given))
        return run.train()
