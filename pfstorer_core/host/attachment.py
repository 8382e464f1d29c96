"""What a restorer's MODEL carries along."""

import dataclasses
from typing import Any

from ..errors import PFStorerError
from ..restorers.info import RestorerInfo

RESTORER_KEY = "pfstorer"  # of what a restorer adds to its MODEL: wrappers, models, the attachment
STABLE_DIFFUSION_SIZE = 512  # pixels; SD restorers do not say what they were trained at


@dataclasses.dataclass(frozen=True)
class LoadedBase:
    """What a restorer's MODEL carries along, as the attachment `RESTORER_KEY`.

    Args:
        info: description of the restorer.
        empty_prompt: CONDITIONING of the empty prompt; None where the checkpoint has no CLIP.
        unet_digests: see `sites.unet_digests`.
    """

    info: RestorerInfo
    empty_prompt: list[Any] | None
    unet_digests: tuple[str, ...]


def trained_size(model: Any) -> int:
    """Returns the side in pixels of the pictures that a restorer's MODEL was made for."""
    described = loaded_base(model).info.bundled
    if described is None:
        return STABLE_DIFFUSION_SIZE
    return int(described["unet"]["image_size"]) * int(described["latent"]["downscale"])


def loaded_base(model: Any) -> LoadedBase:
    """Returns what a restorer's MODEL carries along.

    Raises:
        PFStorerError: another MODEL.
    """
    attached = model.get_attachment(RESTORER_KEY)
    if not isinstance(attached, LoadedBase):
        raise PFStorerError(
            "The MODEL has no restorer; connect the MODEL that 'Load Base Restorer' gives."
        )
    return attached
