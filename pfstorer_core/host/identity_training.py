"""Training of an identity adapter inside ComfyUI, on a copy of a restorer's MODEL."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import torch
from torch import Tensor, nn

from ..adapter import AdapterInfo, IdentityAdapter
from ..degradation import PRESETS as DEGRADATIONS
from ..degradation import degrade
from ..errors import PFStorerError
from ..files import check_writable
from ..personalization import PersonalizationConfig
from ..photo_checks import check_photos
from ..restorer import BaseRestorer
from ..training.base import restore_latents
from ..training.identity import (
    PRESETS,
    VIEWS,
    IdentityTrainingConfig,
    build_photo_pool,
    identity_objective,
)
from ..training.loop import Sampler, check_precision, fit
from ..training.report import report_sheet
from ..values import unit_range
from ..views import random_view
from .base_training import scaled_encoder, training_schedule
from .faces import face_finder
from .loading import restoration, trained_size
from .memory import is_out_of_memory, lack_of_memory_told
from .network import PersonalizedNetwork, trainable_unet
from .patches import restorer_wrapper
from .sites import find_identity_sites, size_step

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

logger = logging.getLogger(__name__)

STATE_VERSION = 1  # of unfinished runs; another cannot be gone on with
COMPLETE = "complete"  # an empty file in the folder of a run that has come to its end
STATE_SIZE = 32  # bytes per weight: float32 weights, averages, two moments; and the state before
PREVIEW_STEPS = 10
PREVIEW_DEGRADATION = "extreme"


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training stands.

    Args:
        stage: "views" while the photos are prepared, then "training".
        done: views or steps done.
        total: of so many.
        loss: of the last step; None before.
        seconds_left: estimate; None where there is none yet.
        sheet: (3, H, W) in [0, 1], where there is a new one: loss curve; LQ, now, clean.
    """

    stage: str
    done: int
    total: int
    loss: float | None = None
    seconds_left: float | None = None
    sheet: Tensor | None = None


class LossHistory:
    """Losses of all steps, kept in the training's state."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the losses."""
        return {"loss": torch.tensor(self.values, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes the losses up."""
        self.values = state["loss"].tolist()


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

    base = restoration(model)
    if base.empty_prompt is None:
        raise PFStorerError(
            "The checkpoint has no text encoder; choose one with a text encoder for training."
        )
    schedule = training_schedule(model)
    size = _view_size(model, vae, config.size)
    device = model.load_device
    precision = _precision(config.mixed_precision, device, warn)
    check_precision(precision, device)
    blocks, loop = config.blocks(), config.loop(precision)
    _check_folders(folder, unfinished, warn)
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
        sheet = _preview(model, vae, encode, pictures[0], size, schedule, config.seed, warn)
        less = "lower batch or size, with which it begins anew"
        if not config.checkpointing:
            less = f"switch checkpointing on, with which it goes on where it stopped, or {less}"
        with lack_of_memory_told(
            f"in the training with batch {config.batch} at {size} px; {less}."
        ):
            network = _network(model, base, config, blocks, name, len(pictures), device, precision)
            losses = LossHistory()
            key = _run_key(network, pictures, config)
            if unfinished is not None:
                unfinished = unfinished.with_stem(f"{unfinished.stem}-{key[:6]}")
            with _run_folder(folder, key) as run:
                if folder is not None:
                    check_room(run, sum(p.numel() for p in network.adapter.parameters()))
                steps = _StepReports(report, losses, config.steps)
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


def _check_folders(
    folder: Path | None, unfinished: Path | None, warn: Callable[[str], None]
) -> None:
    """Finds out whether states and adapters can be written, before hours are spent."""
    if folder is not None:
        check_writable(folder)
    if unfinished is not None:
        try:
            check_writable(next(place for place in unfinished.parents if place.exists()))
        except PFStorerError as error:  # the adapter may be wanted for this workflow alone
            warn(f"{error} Else the adapter cannot be saved.")


def check_room(run: Path, weights: int) -> None:
    """Finds out whether the states of a run can be written; a complete one writes none.

    Args:
        run: its folder.
        weights: trained numbers.

    Raises:
        PFStorerError: see `files.check_writable`.
    """
    if (run / COMPLETE).exists():
        return
    state = run / "state"
    there = state.stat().st_size if state.exists() else 0
    check_writable(run, STATE_SIZE * weights - there)


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


def _view_size(model: Any, vae: Any, wanted: int) -> int:
    step = vae.spacial_compression_encode() * size_step(model.model.diffusion_model)
    if wanted % step:
        raise PFStorerError(f"The views' size is {wanted} pixels; choose a multiple of {step}.")
    return wanted or trained_size(model)


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


class _StepReports:
    """Turns the loop's reports into progress, with time left and sheets."""

    def __init__(
        self, report: Callable[[TrainingProgress], None], losses: LossHistory, steps: int
    ) -> None:
        self.report, self.losses, self.steps = report, losses, steps
        self._first: tuple[int, float] | None = None
        self._left: float | None = None

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        now = time.monotonic()
        self.losses.values.append(scalars["loss"])
        if self._first is None:
            self._first = step, now
        else:
            first, then = self._first
            self._left = (now - then) / (step - first) * (self.steps - step)
        self.report(TrainingProgress("training", step, self.steps, scalars["loss"], self._left))

    def sampler(self, pictures: Sampler) -> Sampler:
        """Returns what draws a sheet and reports it."""

        def draw(network: nn.Module) -> Tensor:
            sheet = report_sheet(self.losses.values, self.steps, pictures(network))
            done = len(self.losses.values)
            loss = self.losses.values[-1] if done else None
            self.report(
                TrainingProgress("training", done, self.steps, loss, self._left, sheet=sheet.cpu())
            )
            return sheet

        return draw


def _preview(
    model: Any,
    vae: Any,
    encode: Callable[[Tensor], Tensor],
    photo: Tensor,
    size: int,
    schedule: DDPMScheduler,
    seed: int,
    warn: Callable[[str], None],
) -> Sampler:
    """Restores one degraded view of a photo: (3, 3, size, size) pictures of LQ, now and clean.

    Where memory runs out, which is told once, the picture of now is grey: a training is worth more
    than its previews.
    """
    generator = torch.Generator().manual_seed(seed)
    views = dataclasses.replace(VIEWS, window=(1.0, 1.0), rotation=0.0)
    clean = random_view(photo, size, views, generator)[None]  # (1, 3, size, size)
    lq = degrade(clean, DEGRADATIONS[PREVIEW_DEGRADATION], generator)
    lq_latent = encode(lq)
    warned = False

    def restored_view(network: nn.Module) -> Tensor:
        device = next(network.parameters()).device
        restored = restore_latents(
            network, schedule, lq_latent.to(device), steps=PREVIEW_STEPS, seed=seed
        )
        picture = vae.decode(model.model.process_latent_out(restored.cpu())).movedim(-1, 1)
        return picture[:, :, :size, :size].cpu().float()

    def draw(network: nn.Module) -> Tensor:
        nonlocal warned
        now = torch.full_like(clean, 0.5)
        try:
            now = restored_view(network)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not warned:
                warn("Out of memory in the preview, which is left out; the training goes on.")
            warned = True
        return torch.cat([lq, now, clean]).clamp(0, 1)

    return draw


def _run_key(
    network: PersonalizedNetwork, pictures: Sequence[Tensor], config: IdentityTrainingConfig
) -> str:
    """Digits (hex) that tell this run apart from those on other bases, photos or settings."""
    info = network.adapter.info
    settings = {k: v for k, v in config.to_dict().items() if k != "preview_every"}
    settings["checkpointing"] = False  # it changes no result, so a run may go on with it
    facts = [STATE_VERSION, info.base_fingerprint, info.unet_digest, settings]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for picture in pictures:
        key.update(str(tuple(picture.shape)).encode())
        key.update(picture.contiguous().numpy().tobytes())
    return key.hexdigest()[:16]


@contextlib.contextmanager
def _run_folder(folder: Path | None, key: str) -> Iterator[Path]:
    """The folder of this very run.

    A complete run is kept until another one begins: where ComfyUI ends before the adapter is saved,
    the same workflow gives it again at once.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="pfstorer-") as temporary:
            yield Path(temporary)
        return
    run = folder / key
    for marker in folder.glob(f"*/{COMPLETE}"):
        if marker.parent != run:
            shutil.rmtree(marker.parent, ignore_errors=True)
    if (run / "state").exists():
        kind = "complete" if (run / COMPLETE).exists() else "unfinished"
        logger.info("Going on with the %s training in %s", kind, run)
    yield run
    with contextlib.suppress(OSError):  # on a full disk the run stays, which harms nothing
        (run / COMPLETE).touch()
