"""One person's adapter as it is applied to a MODEL, and whether it can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ...errors import PFStorerError
from ...identities.adapter import IdentityAdapter
from ..base import Base
from ..sites import find_identity_sites

IDENTITY_KEY = "pfstorer_identities"
AUTO: Literal["auto"] = "auto"
_MOST_NUMBERS = 8  # in a line for the user


@dataclass(frozen=True)
class AppliedIdentity:
    """One person's adapter as it is applied to a MODEL.

    Args:
        adapter: the personalization blocks.
        patcher: ComfyUI's patcher of the adapter; None in training.
        strength: factor on the adapter's own gamma; at 0 only the mask has a meaning. `AUTO` is to
            be chosen for each picture, see `chosen_gammas.choose_gammas`.
        gammas: (B,) what was chosen, one per picture.
        mask: (M, H, W) in [0, 1] of any resolution, where the person is; None is everywhere.
        sigmas: highest and lowest sigma at which the adapter acts; None is at all.
        references: (R, C, h, w) scaled latents of photos of the person.
        reference_context: (1, tokens, width) text embedding under which their features are taken.
        reference_pooled: (1, P) `y` of each of the references; empty where the UNet takes none.
    """

    adapter: IdentityAdapter
    patcher: Any = None
    strength: float | Literal["auto"] = 1.0
    gammas: Tensor | None = None
    mask: Tensor | None = None
    sigmas: tuple[float, float] | None = None
    references: tuple[Tensor, ...] = ()
    reference_context: Tensor | None = None
    reference_pooled: tuple[Tensor, ...] = ()

    @property
    def gamma_text(self) -> str:
        """The gamma as it is told to the user, of each picture where it was chosen."""
        if self.gammas is None:
            return f"{float(self.strength):g}" if self.strength != AUTO else "automatic"
        return numbers_text(self.gammas, ".2f") + " (automatic)"

    def acts_at(self, options: dict[str, Any]) -> bool:
        """Whether it has any strength and the sampler's sigma lies in the range."""
        if self.strength == 0:
            return False
        sigma = options.get("sigmas")
        if self.sigmas is None or sigma is None:
            return True
        high, low = self.sigmas
        return low <= float(sigma.max()) <= high


def numbers_text(values: Tensor, form: str) -> str:
    """Returns values (B,) as text, of many only the least and the largest."""
    if len(values) > _MOST_NUMBERS:
        return f"{float(values.min()):{form}} to {float(values.max()):{form}}"
    return ", ".join(f"{float(value):{form}}" for value in values)


def check_settings(gamma: float | str, mask: Tensor | None, start: float, end: float) -> None:
    """Checks how an identity shall be applied.

    Raises:
        PFStorerError: a value out of its range, or a mask of another shape.
    """
    if gamma != AUTO and (isinstance(gamma, str) or not 0 <= gamma <= 2):
        raise PFStorerError(f"gamma is {gamma}; choose 0 (the base) to 2, or '{AUTO}'.")
    if not 0 <= start <= end <= 1:
        raise PFStorerError(
            f"The identity shall act from {start} to {end} of the sampling; choose 0 <= start <= "
            "end <= 1."
        )
    if mask is not None and (mask.ndim not in (2, 3) or not mask.numel()):
        raise PFStorerError(
            f"The mask has the shape {tuple(mask.shape)}; expected (batch, height, width)."
        )


def check_mask_counts(identities: Sequence[AppliedIdentity], images: int) -> None:
    """Checks that each identity has one mask, or one for each image.

    Raises:
        PFStorerError: another number of masks, which would go to images by chance.
    """
    for identity in identities:
        masks = 1 if identity.mask is None else len(identity.mask)
        if masks not in (1, images):
            raise PFStorerError(
                f"Identity '{identity.adapter.info.name}' has {masks} masks for {images} image(s); "
                "give one mask, or one for each image (masks of one image are joined by "
                "'MaskComposite')."
            )


def check_identity_fit(unet: Any, adapter: IdentityAdapter, base: Base) -> None:
    """Checks that an identity adapter was trained on a base and fits its UNet.

    Args:
        unet: ComfyUI's `UNetModel`.
        adapter: the adapter.
        base: what the MODEL carries along.

    Raises:
        PFStorerError: it was trained on another base; the sentence names both.
    """
    info, restorer = adapter.info, base.info
    if info.base_fingerprint != restorer.fingerprint:
        raise PFStorerError(
            f"Identity adapter '{info.name}' was trained on restorer '{info.base_name}' "
            f"({info.base_fingerprint[:8]}), but the MODEL has restorer '{restorer.name}' "
            f"({restorer.fingerprint[:8]}); load the restorer that it was trained on, or train the "
            "identity again on this one."
        )
    same = info.unet_digest in ("", *base.unet_digests) and info.context_dim == base.context_dim
    if not same or dict(info.site_channels) != find_identity_sites(unet):
        raise PFStorerError(
            f"Identity adapter '{info.name}' was trained on restorer '{info.base_name}' with "
            "another Stable Diffusion checkpoint than the MODEL's; choose that checkpoint in "
            "'Load Base Restorer'."
        )
