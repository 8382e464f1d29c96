"""Memory of a device: what a model can have, and how running out of it shows."""

import contextlib
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import comfy.model_management as mm
import torch

from ..errors import PFStorerError
from ..lack_of_memory import lacks_memory

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def available_memory(model_patcher: Any) -> float:
    """Returns the bytes on a model's device that are free once only this model is loaded there.

    Args:
        model_patcher: ComfyUI's `ModelPatcher`; the models that belong to it count with it.
    """
    device = model_patcher.load_device
    free = float(mm.get_free_memory(device))
    if mm.is_device_cpu(device):
        return free  # weights lie in main memory, loaded or not
    models = [model_patcher, *model_patcher.get_nested_additional_models()]
    # The host keeps the place of a model that is gone for a while.
    others = (m for m in mm.loaded_models() if m is not None and m.load_device == device)
    loaded = {id(m.model): m.loaded_size() for m in others}
    return max(0.0, free + sum(loaded.values()) - sum(m.model_size() for m in models))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has no memory left, as ComfyUI or torch tell it."""
    told_by_host = getattr(mm, "is_oom", None)  # unknown to older versions
    if told_by_host is not None and told_by_host(error):
        return True
    return lacks_memory(error)


@contextlib.contextmanager
def lack_of_memory_told(text: str) -> Iterator[None]:
    """Turns a lack of memory within it into a sentence, and unloads ComfyUI's models.

    Args:
        text: where it is met and what to do.

    Raises:
        PFStorerError: memory ran out.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The error stays the context of the sentence, and would hold the tensors of what was tried.
        traceback.clear_frames(error.__traceback__)
    # ComfyUI does so for the errors that it knows as a lack of memory, which the sentence is not.
    with torch.inference_mode():  # see `train.from_model.decoded`
        mm.unload_all_models()
    mm.soft_empty_cache()
    raise PFStorerError(f"Out of memory {text}") from None


def retry_smaller(
    run: Callable[[], Result],
    shrink: Callable[[], str],
    tell: Callable[[str], None] | None = None,
) -> Result:
    """Returns what `run` gives, and runs it again with less each time that memory runs out.

    Args:
        run: the work.
        shrink: makes the work smaller and says how; raises where there is nothing left to take.
        tell: is told it as well.
    """
    while True:
        try:
            return run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # After the handler, because the error holds on to the tensors of the failed try.
        mm.soft_empty_cache()
        text = f"Out of memory {shrink()}"
        logger.warning(text)
        if tell is not None:
            tell(text)
