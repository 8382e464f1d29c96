"""Lack of memory at every stage of restoring and training, raised where the real one would be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .report import Outcome, Settings, Tally

Call = Callable[[], Any]
SENTENCE = "One sentence that says what to do; afterwards the MODEL restores bit for bit as before"
GOES_ON = "Goes on with less; afterwards the MODEL restores bit for bit as before"


class Shortage:
    """A hook for every module's forward: memory runs out at certain ones.

    Args:
        meets: whether a module's forward is where it can run out.
        first: number of the first such forward at which it does.
        times: how often it does from there on.
    """

    def __init__(self, meets: Callable[[nn.Module], bool], first: int = 1, times: int = 10**9):
        self.meets, self.first, self.times = meets, first, times
        self.seen = 0

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        """Raises as a GPU does."""
        if self.meets(module):
            self.seen += 1
            if self.first <= self.seen < self.first + self.times:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def run(settings: Settings) -> list[Outcome]:
    """Lets memory run out in restorations, then in trainings."""
    from pfstorer_core import host

    from .originals import write_original
    from .small import load_small, restored

    path = settings.workspace / "cfw.safetensors"
    write_original("CFW decoder", path)
    with torch.inference_mode():  # as ComfyUI runs nodes
        loaded, cfw = load_small(settings.workspace), host.load_cfw(path)
        before = restored(loaded)
        return [
            _restorations(loaded, cfw, before),
            _once(loaded, cfw, before, settings.quick),
            _trainings(loaded, before, settings),
        ]


def _stages(loaded: Any, cfw: Any) -> dict[str, tuple[Callable[[nn.Module], bool], Call]]:
    """Where memory can run out in a restoration, and what to do for it."""
    from pfstorer_core import host
    from pfstorer_core.host.images import encode_lq, encode_references

    from .small import photos, restored

    model, _, vae = loaded
    (patcher,) = model.get_additional_models()
    network, unet = vae.first_stage_model, model.model.diffusion_model
    fused = cfw.first_stage_model.decoder.fusion_layer_1
    return {
        "encoding the LQ image": (lambda m: m is network.encoder, lambda: restored(loaded)),
        "encoding for a KSampler": (
            lambda m: m is network.encoder,
            lambda: host.condition_on_lq(model, encode_lq(model, vae, photos()[0])),
        ),
        "encoding references": (
            lambda m: m is network.encoder,
            lambda: encode_references(model, vae, photos()),
        ),
        "the time-aware encoder": (
            lambda m: m is patcher.model.encoder,
            lambda: restored(loaded),
        ),
        "a sampling step": (lambda m: m is unet.out, lambda: restored(loaded)),
        "decoding": (lambda m: m is network.decoder, lambda: restored(loaded)),
        "decoding with CFW": (
            lambda m: m is fused,
            lambda: restored(loaded, cfw, fidelity=0.5),
        ),
    }


def _restorations(loaded: Any, cfw: Any, before: Tensor) -> Outcome:
    """Memory that is never enough."""
    from .small import hooked

    tally = Tally("No memory at all in a restoration, by stage", SENTENCE)
    for stage, (meets, call) in _stages(loaded, cfw).items():
        shortage = Shortage(meets)
        with hooked(shortage):
            said = _said(call)
        tally.add(_lost(stage, shortage, said, loaded, before))
    return tally.outcome()


def _once(loaded: Any, cfw: Any, before: Tensor, quick: bool) -> Outcome:
    """Memory that is not enough for the first tries."""
    from .small import hooked

    tally = Tally("Too little memory for a while in a restoration, by stage", GOES_ON)
    stages = _stages(loaded, cfw)
    for stage in ("encoding the LQ image", "the time-aware encoder", "a sampling step", "decoding"):
        meets, call = stages[stage]
        for first in (1,) if quick or "sampling" not in stage else (1, 2):
            shortage, result = Shortage(meets, first, times=1), []
            with hooked(shortage):
                said = _said(lambda call=call, result=result: result.append(call()))
            if said is None and not result[0].isfinite().all():
                said = "a result that is not finite"
            said = "" if said is None else said
            tally.add(_lost(stage, shortage, said, loaded, before, refused=False))
    return tally.outcome()


def _trainings(loaded: Any, before: Tensor, settings: Settings) -> Outcome:
    """Memory that runs out in a training: it can go on to the same end."""
    from pfstorer_core.identities.block import PersonalizationBlock

    from .small import hooked, same, train

    tally = Tally(
        "No memory in a training, by stage",
        f"{SENTENCE}; the training goes on to the same adapter as without",
    )
    autoencoder = loaded[2].first_stage_model

    def trained(module: nn.Module) -> bool:
        return isinstance(module, PersonalizationBlock) and torch.is_grad_enabled()

    whole = train(loaded)
    sites = len(whole.sites)
    stages: dict[str, tuple[Callable[[nn.Module], bool], int]] = {
        "views of the photos": (lambda m: m is autoencoder.encoder, 1),
        "the first step": (trained, 1),
        "a later step": (trained, 2 * sites + 1),
        "the preview": (lambda m: m is autoencoder.decoder, 1),
    }
    chosen = list(stages)[2:] if settings.quick else list(stages)
    for stage in chosen:
        meets, first = stages[stage]
        folder = settings.workspace / "runs" / stage.replace(" ", "_")
        shortage, result = Shortage(meets, first), []
        with hooked(shortage):
            said = _said(
                lambda result=result, folder=folder: result.append(train(loaded, folder=folder))
            )
        goes_on = stage == "the preview"
        failure = _lost(stage, shortage, said or "", loaded, before, refused=not goes_on)
        again = result[0] if goes_on and result else train(loaded, folder=folder)
        if failure is None and not same(again, whole):
            failure = f"{stage}: another adapter in the end"
        tally.add(failure)
    return tally.outcome()


def _said(call: Call) -> str | None:
    """Returns what a call is refused with, None if it is not."""
    from pfstorer_core.errors import PFStorerError

    try:
        call()
    except PFStorerError as error:
        return str(error)
    except Exception as error:
        return f"a raw {type(error).__name__}: {str(error)[:100]}"
    return None


def _lost(
    stage: str,
    shortage: Shortage,
    said: str | None,
    loaded: Any,
    before: Tensor,
    refused: bool = True,
) -> str | None:
    """Says what did not hold after memory ran out."""
    from .small import restored

    if shortage.seen < shortage.first:
        return f"{stage}: memory never ran out, so nothing was shown"
    clear = said is not None and "memory" in said and said.endswith(".") and "raw" not in said
    if not clear if refused else said:
        return f"{stage}: {said}"
    if not torch.equal(restored(loaded), before):
        return f"{stage}: the MODEL restores differently afterwards"
    return None
