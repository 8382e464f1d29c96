"""Saving and taking up the state of a training, so that nothing is lost at an interruption."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ..errors import PFStorerError, first_line
from ..lack_of_memory import lacks_memory
from ..weights.whole_files import write_whole


class TrainedWeights:
    """The part of a model that a training changes, so that no state holds a frozen base."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the trained parameters by name."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copies a state dict of the same names and shapes into the parameters.

        Raises:
            ValueError: other names or shapes.
        """
        shapes = {name: tensor.shape for name, tensor in state.items()}
        if shapes != {name: parameter.shape for name, parameter in self._parameters.items()}:
            raise ValueError("other names or shapes of weights")
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state[name])


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps the folder of a run to this process while the context lasts.

    On a file system that has no locks it does nothing.

    Raises:
        PFStorerError: another process trains there.
    """
    import filelock

    lock = filelock.FileLock(folder / "lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise PFStorerError(
            f"The same training runs in another process now, in '{folder}'; let that end, or "
            "change a setting of this one."
        ) from error
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def save_state(path: Path, parts: dict[str, Any], step: int, settings: dict[str, Any]) -> None:
    """Writes the parts' state dicts and the step to one file, atomically.

    Args:
        path: the state file; an older one is replaced only once the new one is complete.
        parts: objects with `state_dict()`, by name.
        step: steps done.
        settings: plain values kept beside them; must hold `config` with the run's `seed`.

    Raises:
        PFStorerError: the file system refuses; an older state is then unharmed.
    """

    def write(file: BinaryIO) -> None:
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"step": step, "settings": settings, "parts": states}, file)

    # always the same name, so that killed writers leave one file at most
    write_whole(path, path.with_name(path.name + ".part"), write)


def load_state(path: Path, parts: dict[str, Any], seed: int) -> int:
    """Loads what `save_state` wrote into the parts and returns the step to go on at.

    Raises:
        PFStorerError: the file cannot be read, or belongs to a run of another seed or model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        kept_seed = state["settings"]["config"]["seed"]
    except Exception as error:  # torch.load raises many types for a damaged file
        if lacks_memory(error):
            raise
        raise PFStorerError(
            f"The training state {path} cannot be read ({first_line(error)}): delete it to start "
            "anew."
        ) from error
    if kept_seed != seed:
        raise PFStorerError(
            f"The training state {path} is of a run with seed {kept_seed}, not {seed}: use "
            "that seed or another folder."
        )
    for name, part in parts.items():
        try:
            part.load_state_dict(state["parts"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise PFStorerError(
                f"The training state {path} does not fit this model ({name}): use the "
                "settings it was begun with."
            ) from error
    return int(state["step"])
