"""Saving and taking up the state of a training, so that nothing is lost at an interruption."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..errors import PFStorerError


def save_state(path: Path, parts: dict[str, Any], step: int, settings: dict[str, Any]) -> None:
    """Writes the parts' state dicts and the step to one file, atomically.

    Args:
        path: the state file; an older one is replaced only once the new one is complete.
        parts: objects with `state_dict()`, by name.
        step: steps done.
        settings: plain values kept beside them; must hold `config` with the run's `seed`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"step": step, "settings": settings, "parts": state}, temporary)
    os.replace(temporary, path)


def load_state(path: Path, parts: dict[str, Any], seed: int) -> int:
    """Loads what `save_state` wrote into the parts and returns the step to go on at.

    Raises:
        PFStorerError: the file cannot be read, or belongs to a run of another seed or model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        kept_seed = state["settings"]["config"]["seed"]
    except Exception as error:  # torch.load raises many types for a damaged file
        raise PFStorerError(
            f"The training state {path.name} cannot be read ({error}): delete it to start anew."
        ) from error
    if kept_seed != seed:
        raise PFStorerError(
            f"The training state {path.name} is of a run with seed {kept_seed}, not {seed}: use "
            "that seed or another folder."
        )
    for name, part in parts.items():
        try:
            part.load_state_dict(state["parts"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise PFStorerError(
                f"The training state {path.name} does not fit this model ({name}): use the "
                "settings it was begun with."
            ) from error
    return int(state["step"])
