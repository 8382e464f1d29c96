"""Where and in which precision a training computes: accelerate, with settings of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import PFStorerError

if TYPE_CHECKING:
    from accelerate import Accelerator


def check_precision(precision: str, device: torch.device) -> None:
    """Finds out whether a device trains in a precision ("no", "bf16" or "fp16").

    Raises:
        PFStorerError: it does not.
    """
    with own_accelerate_state():
        make_accelerator(device, mixed_precision=precision)


def make_accelerator(device: torch.device | None, **settings: Any) -> Accelerator:
    """Returns accelerate's object for a training.

    Args:
        device: where to train; None leaves it to accelerate.
        settings: further arguments of `Accelerator`, `mixed_precision` among them.

    Raises:
        PFStorerError: the device does not train in the precision.
    """
    from accelerate import Accelerator
    from accelerate.utils import patch_environment

    # accelerate else takes the first device that it knows
    chosen = {} if device is None else {"ACCELERATE_TORCH_DEVICE": str(device)}
    try:
        with patch_environment(**chosen):
            return Accelerator(cpu=device is not None and device.type == "cpu", **settings)
    except ValueError as error:
        raise PFStorerError(
            f"This device ({device or 'the default'}) does not train in the precision "
            f"'{settings['mixed_precision']}': {error} Choose the precision 'no' (float32)."
        ) from error


def sent(tensors: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """Returns tensors of the CPU on a device, for which nothing waits."""
    if device.type != "cuda":
        return [x.to(device) for x in tensors]
    return [x.pin_memory().to(device, non_blocking=True) for x in tensors]


@contextlib.contextmanager
def own_accelerate_state() -> Iterator[None]:
    """Forgets accelerate's settings afterwards, unless there were some before.

    It keeps them per process, and a host trains again with others.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    was_there = bool(AcceleratorState._shared_state), bool(PartialState._shared_state)
    try:
        yield
    finally:
        alone = PartialState._shared_state.get("num_processes", 1) == 1
        if alone and not was_there[0]:
            AcceleratorState._reset_state(reset_partial_state=not was_there[1])
            GradientState._reset_state()
