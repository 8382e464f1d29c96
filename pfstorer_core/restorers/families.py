"""The families of restorers, by the name that stands in the files we write."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import BaseRestorer
from .stablesr.restorer import StableSRRestorer

STABLESR = "stablesr"
# A family is added by its class and an entry here; the first that finds weights of its own in a
# file that names no family takes it.
FAMILIES: dict[str, type[BaseRestorer]] = {STABLESR: StableSRRestorer}


def family_name(family: type[BaseRestorer]) -> str:
    """Returns the name of a family."""
    return next(name for name, known in FAMILIES.items() if known is family)


def family_of_weights(tensors: Mapping[str, Tensor]) -> type[BaseRestorer] | None:
    """Returns the family whose weights are among those of a checkpoint, None if none's are."""
    return next((family for family in FAMILIES.values() if family.select(tensors)), None)


def family_of_config(config: Any) -> type[BaseRestorer]:
    """Returns the family whose sizes these are.

    Raises:
        KeyError: no family has such sizes.
    """
    for family in FAMILIES.values():
        if isinstance(config, family.config_type):
            return family
    raise KeyError(f"no family of restorers is built from a {type(config).__name__}")
