"""Training of an identity adapter inside ComfyUI, on a copy of a restorer's MODEL."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import PFStorerError
from ...identities.adapter import IdentityAdapter
from ...measures.photo_checks import check_photos
from ...pictures.values import unit_range
from ...training.identity import (
    PRESETS,
    VIEWS,
    IdentityTrainingConfig,
    build_photo_pool,
    identity_objective,
)
from ...training.loop import Sampler, fit
from ...training.pool import LatentPool
from ...training.runs import Run, check_folders, run_key
from ..measure.faces import face_finder
from ..memory import lack_of_memory_told
from .likeness import likeness_scale
from .network import PersonalizedNetwork, personalized_network
from .preview import preview_sampler
from .progress import LossHistory, StepReports, Told, TrainingProgress
from .setup import Setup, set_up


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
    told = Told(on_progress, on_warning)
    setup = set_up(model, vae, config, told.warn)
    check_folders(folder, unfinished, told.warn)
    # Tensors of inference mode, under which ComfyUI runs its nodes, cannot take part in training.
    with torch.inference_mode(False), torch.enable_grad():
        pictures = _pictures(photos)
        _warn_of_photos(pictures, setup, told.warn)
        pool = _views(pictures, setup, told)
        sheet = preview_sampler(setup, pictures[0], told.warn)
        with lack_of_memory_told(_when_memory_lacks(setup)):
            network = personalized_network(setup, name, len(pictures))
            run = Run(folder, unfinished, run_key(network.adapter.info, pictures, config))
            _train(network, pool, setup, run, sheet, told)
        adapter = _finished(network.adapter, config.steps)
        del network  # makes room
        scale = likeness_scale(setup, adapter, pictures, told)
        adapter.info = dataclasses.replace(adapter.info, likeness=scale)
        return adapter


def _train(
    network: PersonalizedNetwork,
    pool: LatentPool,
    setup: Setup,
    run: Run,
    sheet: Sampler,
    told: Told,
) -> None:
    """Trains the network's adapter in the folder of a run, and keeps what an end leaves behind."""
    losses = LossHistory()
    steps = StepReports(told.report, losses, setup.config.steps)
    with run.opened(sum(p.numel() for p in network.adapter.parameters())) as folder:
        try:
            fit(
                network,
                identity_objective(pool, setup.schedule, setup.config),
                setup.config.loop(setup.precision),
                folder,
                sample=steps.sampler(sheet),
                on_step=steps,
                kept={"losses": losses},
                device=setup.device,
                log_to_files=False,
                on_warning=told.warn_beside_log,
            )
        except BaseException:
            if losses.values:
                run.keep_unfinished(_finished(network.adapter, len(losses.values)))
            raise


def _views(pictures: Sequence[Tensor], setup: Setup, told: Told) -> LatentPool:
    with lack_of_memory_told(
        f"while views of the photos are encoded at {setup.size} px; lower size, or start ComfyUI "
        "with --cpu-vae."
    ):
        return build_photo_pool(
            pictures,
            setup.size,
            setup.encode,
            setup.config,
            encode_lq=setup.encode_lq,
            on_batch=lambda done, total: told.report(TrainingProgress("views", done, total)),
        )


def _warn_of_photos(pictures: Sequence[Tensor], setup: Setup, warn: Callable[[str], None]) -> None:
    for warning in check_photos(pictures, setup.size, find_faces=face_finder(), views=VIEWS):
        warn(warning)
    if setup.model.patches:
        warn("The MODEL carries a LoRA, which the training leaves out.")


def _when_memory_lacks(setup: Setup) -> str:
    less = "lower batch or size, with which it begins anew"
    if not setup.config.checkpointing:
        less = f"switch checkpointing on, with which it goes on where it stopped, or {less}"
    return f"in the training with batch {setup.config.batch} at {setup.size} px; {less}."


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


def _finished(adapter: IdentityAdapter, steps: int) -> IdentityAdapter:
    adapter.info = dataclasses.replace(adapter.info, steps=steps)
    return adapter.cpu().eval().requires_grad_(False)
