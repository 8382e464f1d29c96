"""Training of an identity adapter inside ComfyUI, on a copy of a restorer's MODEL."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ...errors import PFStorerError
from ...identities.adapter import AdapterInfo, IdentityAdapter
from ...identities.config import PersonalizationConfig
from ...measures.photo_checks import check_photos
from ...pictures.values import unit_range
from ...restorers.base import BaseRestorer
from ...training.devices import check_precision
from ...training.identity import (
    PRESETS,
    VIEWS,
    IdentityTrainingConfig,
    build_photo_pool,
    identity_objective,
)
from ...training.loop import fit
from ..base import Base, base_of
from ..measure.faces import face_finder
from ..memory import lack_of_memory_told
from ..patch.model import restorer_wrapper
from ..sites import find_identity_sites
from .from_model import scaled_encoder, trainable_unet, training_schedule
from .network import PersonalizedNetwork
from .preview import preview_sampler
from .progress import LossHistory, StepReports, TrainingProgress
from .runs import check_folders, check_room, run_folder, run_key

logger = logging.getLogger(__name__)


def train_identity(
    model: Any,
    vae: Any,
    photos: Sequence[Tensor],
    config: IdentityTrainingConfig = PRESETS["standard"],
    *,
    name: str = "person",
    folder: Path | None = None,
    unfinished: Path | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> IdentityAdapter:
    """Trains an adapter on photos of one person; the MODEL is never changed.

    A run that was interrupted goes on where it stopped when it is started again with the same base,
    photos and settings, and ends as it would have without the interruption.

    Args:
        model: MODEL of `load_base_restorer`.
        vae: its VAE.
        photos: IMAGE batches (B, H, W, 3 or 4) in [0, 1], of any sizes; 3 to 10 photos are best.
        config: settings.
        name: what to call the person.
        folder: keeps the states of unfinished runs, and of the last complete one until another
            begins; None keeps none.
        unfinished: where an interrupted run leaves its adapter as far as it came, a .safetensors
            file; six digits of the run are added to its name, and it is removed once the run is
            complete.
        on_progress: is told of every view and step; what it raises ends the run.
        on_warning: is told what is wrong with the photos; the log is always.

    Returns:
        The adapter with averaged weights, in float32 on the CPU.

    Raises:
        PFStorerError: photos that cannot be trained on, a MODEL without restorer, a folder that
            cannot be written, too little memory, or what `fit` raises.

    Source: PFStorer (arXiv 2403.08436), section 3.
    """
    report = on_progress or (lambda progress: None)

    def warn(sentence: str) -> None:
        logger.warning("%s", sentence)
        if on_warning is not None:
            on_warning(sentence)

    base = base_of(model)
    if base.empty_prompt is None:
        raise PFStorerError(
            "The checkpoint has no text encoder; choose one with a text encoder for training."
        )
    schedule = training_schedule(model)
    size = _view_size(base, config.size)
    device = model.load_device
    precision = _precision(config.mixed_precision, device, warn)
    check_precision(precision, device)
    blocks, loop = config.blocks(), config.loop(precision)
    check_folders(folder, unfinished, warn)
    # Tensors of inference mode, under which ComfyUI runs its nodes, cannot take part in training.
    with torch.inference_mode(False), torch.enable_grad():
        pictures = _pictures(photos)
        warnings = check_photos(pictures, size, find_faces=face_finder(), views=VIEWS)
        if model.patches:
            warnings.append("The MODEL carries a LoRA, which the training leaves out.")
        for warning in warnings:
            warn(warning)
        encode = scaled_encoder(model, vae)
        with lack_of_memory_told(
            f"while views of the photos are encoded at {size} px; lower size, or start ComfyUI "
            "with --cpu-vae."
        ):
            pool = build_photo_pool(
                pictures,
                size,
                encode,
                config,
                on_batch=lambda done, total: report(TrainingProgress("views", done, total)),
            )
        sheet = preview_sampler(model, vae, encode, pictures[0], size, schedule, config.seed, warn)
        less = "lower batch or size, with which it begins anew"
        if not config.checkpointing:
            less = f"switch checkpointing on, with which it goes on where it stopped, or {less}"
        with lack_of_memory_told(
            f"in the training with batch {config.batch} at {size} px; {less}."
        ):
            network = _network(model, base, config, blocks, name, len(pictures), device, precision)
            losses = LossHistory()
            key = run_key(network, pictures, config)
            if unfinished is not None:
                unfinished = unfinished.with_stem(f"{unfinished.stem}-{key[:6]}")
            with run_folder(folder, key) as run:
                if folder is not None:
                    check_room(run, sum(p.numel() for p in network.adapter.parameters()))
                steps = StepReports(report, losses, config.steps)
                try:
                    fit(
                        network,
                        identity_objective(pool, schedule, config),
                        loop,
                        run,
                        sample=steps.sampler(sheet),
                        on_step=steps,
                        kept={"losses": losses},
                        device=device,
                        log_to_files=False,
                        on_warning=on_warning,
                    )
                except BaseException:
                    if unfinished is not None and losses.values:
                        _keep_unfinished(_finished(network.adapter, len(losses.values)), unfinished)
                    raise
        if unfinished is not None:
            with contextlib.suppress(OSError):  # a folder that has become read-only
                unfinished.unlink()
        return _finished(network.adapter, config.steps)


def _pictures(photos: Sequence[Tensor]) -> list[Tensor]:
    pictures: list[Tensor] = []
    for batch in photos:
        if batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4):
            raise PFStorerError(
                f"Photos have the shape {tuple(batch.shape)}; expected (batch, height, width, "
                "channels) with 1, 3 or 4 channels."
            )
        rgb = batch[..., :3].clone().float().cpu().movedim(-1, 1)  # (B, 1 or 3, H, W)
        for photo in rgb.expand(-1, 3, -1, -1):
            pictures.append(unit_range(photo, f"Photo {len(pictures) + 1}"))
    return pictures


def _view_size(base: Base, wanted: int) -> int:
    step = base.cell * base.size_step
    if wanted % step:
        raise PFStorerError(f"The views' size is {wanted} pixels; choose a multiple of {step}.")
    return wanted or base.trained_size


def _precision(wanted: str, device: torch.device, warn: Callable[[str], None]) -> str:
    if wanted == "fp16" and device.type == "cpu":
        raise PFStorerError("A CPU does not train in fp16; choose auto, bf16 or no.")
    if wanted != "auto":
        return wanted
    if device.type == "cpu":
        # without the instructions, bf16 on a CPU is emulated and slow
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return "bf16" if native() else "no"
    if mm.should_use_bf16(device):  # the host knows what each device has
        return "bf16"
    if device.type == "cuda" and mm.should_use_fp16(device):
        return "fp16"
    warn(
        f"ComfyUI computes in float32 on this device ({device.type}), so the training does too, "
        "which takes more time and memory; precision bf16 or fp16 may be tried."
    )
    return "no"


def _network(
    model: Any,
    base: Any,
    config: IdentityTrainingConfig,
    blocks: PersonalizationConfig,
    name: str,
    photos: int,
    device: torch.device,
    precision: str,
) -> PersonalizedNetwork:
    # makes room, and takes what LoRAs changed out of the weights
    mm.unload_all_models()
    # the frozen part needs no master weights
    full = device.type == "cpu" or precision == "no"
    dtype = torch.float32 if full else model.model.get_dtype_inference()
    unet = trainable_unet(model, dtype)
    restorer = BaseRestorer.from_state_dict(restorer_wrapper(model).restorer.weights(), dtype=dtype)
    prompt = base.empty_prompt[0][0]  # (1, tokens, width)
    info = AdapterInfo(
        name=name,
        base_name=base.info.name,
        base_fingerprint=base.info.fingerprint,
        context_dim=prompt.shape[-1],
        site_channels=find_identity_sites(unet),
        config=blocks,
        photos=photos,
        training=config.to_dict(),
        unet_digest=base.unet_digests[0],
    )
    return PersonalizedNetwork(
        unet,
        restorer,
        prompt[0].float().cpu().clone(),
        IdentityAdapter.initialise(info, config.seed),
        checkpoint=config.checkpointing,
    )


def _keep_unfinished(adapter: IdentityAdapter, path: Path) -> None:
    try:
        adapter.save(path)
    except PFStorerError as error:  # what ended the training is to be told, not this
        logger.warning("%s", error)
    else:
        logger.info("The adapter after %d steps is in %s", adapter.info.steps, path)


def _finished(adapter: IdentityAdapter, steps: int) -> IdentityAdapter:
    adapter.info = dataclasses.replace(adapter.info, steps=steps)
    return adapter.cpu().eval().requires_grad_(False)
