"""How pictures are restored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ...errors import PFStorerError
from ...tiling.upscaling import UPSCALINGS

COLOR_FIXES = ("wavelet", "adain", "none")
STARTS = ("LQ image", "noise")


def _setting(default: Any, **limits: Any) -> Any:
    return dataclasses.field(default=default, metadata=limits)


@dataclass(frozen=True)
class RestoreSettings:
    """How pictures are restored; the node's inputs have these defaults and limits.

    Args:
        steps: sampling steps.
        cfg: guidance scale; 1 is without guidance, at half the cost.
        sampler_name: one of ComfyUI's samplers.
        scheduler: one of ComfyUI's schedulers.
        seed: seed of the noise.
        denoise: share of the noise schedule that is run, in (0, 1].
        start: "LQ image" adds the noise to the LQ latent, "noise" starts from pure noise.
        color_fix: "wavelet", "adain" or "none": how the input gives its colours to the output.
        tile_size: side of a tile in pixels; 0 chooses it.
        overlap: what neighbouring tiles share at least, as a share of the tile, in [0, 0.75].
        tile_batch: tiles that the UNet gets at once; 0 takes what fits into the free memory.
        upscaling: "one pass", "progressive", "plain" or "auto", see `upscaling.pass_sizes`.
        fidelity: fusion weight w of a CFW decoder, in [0, 1]; 0 is its plain autoencoder.
        masked_only: whether only what lies in identities' masks is restored.
        feather: pixels over which a mask's inner edge fades, with `masked_only`.
        encoder_interval: evaluations of the model that share the encoder's features; 1 is exact.
        check_person: whether the report tells if a picture probably shows somebody else than the
            identities; costs four evaluations of a picture of the trained size for each identity.
            Only with adapters that remember how their person looks, and with the mini restorer.
    """

    steps: int = _setting(20, min=1, max=1000)
    cfg: float = _setting(1.0, min=0.0, max=30.0)
    sampler_name: str = "euler"
    scheduler: str = "normal"
    seed: int = _setting(0, min=0, max=2**64 - 1)
    denoise: float = _setting(1.0, min=0.01, max=1.0)
    start: str = _setting(STARTS[0], options=STARTS)
    color_fix: str = _setting(COLOR_FIXES[0], options=COLOR_FIXES)
    tile_size: int = _setting(0, min=0, max=4096)
    overlap: float = _setting(0.25, min=0.0, max=0.75)
    tile_batch: int = _setting(0, min=0, max=64)
    upscaling: str = _setting(UPSCALINGS[0], options=UPSCALINGS)
    fidelity: float = _setting(0.0, min=0.0, max=1.0)
    masked_only: bool = False
    feather: int = _setting(16, min=0, max=1024)
    encoder_interval: int = _setting(1, min=1, max=100)
    check_person: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, known = getattr(self, field.name), field.metadata.get("options")
            if known and value not in known:
                raise PFStorerError(f"{field.name} is '{value}'; choose one of {', '.join(known)}.")
        if self.steps < 1 or not 0 < self.denoise <= 1 or self.cfg < 0:
            raise PFStorerError(
                f"There are {self.steps} steps, denoise {self.denoise} and cfg {self.cfg}; choose "
                "1 step or more, denoise above 0 up to 1, and cfg of 0 or more."
            )
        if not 0 <= self.fidelity <= 1:
            raise PFStorerError(f"fidelity is {self.fidelity}; choose 0 (plain VAE) to 1.")
        if self.start == "noise" and self.denoise < 1:
            raise PFStorerError(
                f"The sampling shall start from noise with denoise {self.denoise}, which is no "
                "noise but a flat grey; set denoise to 1, or start to 'LQ image'."
            )
        if self.encoder_interval < 1 or self.feather < 0:
            raise PFStorerError(
                f"encoder_interval is {self.encoder_interval} and feather {self.feather}; choose 1 "
                "or more, and 0 or more."
            )

    def summary(self) -> str:
        """Says in one line what nobody sees who leaves the settings alone."""
        return (
            f"Settings: {self.steps} steps of {self.sampler_name} ({self.scheduler}), cfg "
            f"{self.cfg:g}, denoise {self.denoise:g} from {self.start}, colours {self.color_fix}, "
            f"upscaling {self.upscaling}, seed {self.seed}"
        )


def limits_of(name: str) -> dict[str, Any]:
    """Returns the default and the limits of a setting, as an input of a node takes them."""
    field = next(x for x in dataclasses.fields(RestoreSettings) if x.name == name)
    options = {"options": list(field.metadata["options"])} if "options" in field.metadata else {}
    return {"default": field.default, **field.metadata, **options}
