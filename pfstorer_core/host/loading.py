"""Finds restorer files and loads them as ComfyUI's MODEL, CLIP and VAE."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import folder_paths
import yaml
from comfy.cli_args import args
from comfy.model_base import ModelType, model_sampling
from torch import Tensor

from .. import restorer as restorer_files
from ..errors import PFStorerError
from ..files import read_weights
from ..restorer import BaseRestorer, RestorerInfo
from . import bundled, patches
from .sites import DIGESTED, unet_digests

logger = logging.getLogger(__name__)

RESTORER_FOLDER = "pfstorer_restorers"
IDENTITY_FOLDER = "pfstorer_identities"
EMBEDDING_FOLDER = "pfstorer_embeddings"
STABLE_DIFFUSION_SIZE = 512  # pixels; SD restorers do not say what they were trained at
EXTENSIONS = {  # of the files that each folder lists
    RESTORER_FOLDER: {".safetensors", ".ckpt", ".pt", ".pth"},
    IDENTITY_FOLDER: {".safetensors"},
    EMBEDDING_FOLDER: {".onnx", ".safetensors"},
}
_RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}  # by Windows, with any ending
_RESERVED |= {f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³"}
_LONGEST_NAME = 180  # bytes, of 255 that file systems allow with number, ending, temporary name
_LONGEST_PATH = 1000  # bytes below the folder of identities
MINI_RESTORER = "mini (bundled)"
MINI_RESTORER_PATH = Path(__file__).parent.parent / "assets" / "mini_restorer.safetensors"
PREDICTION_TYPES = {"epsilon": ModelType.EPS, "v_prediction": ModelType.V_PREDICTION}


@dataclasses.dataclass(frozen=True)
class Restoration:
    """What a restorer's MODEL carries along, as the attachment `patches.KEY`.

    Args:
        info: description of the restorer.
        empty_prompt: CONDITIONING of the empty prompt; None where the checkpoint has no CLIP.
        unet_digests: see `sites.unet_digests`.
    """

    info: RestorerInfo
    empty_prompt: list[Any] | None
    unet_digests: tuple[str, ...]


def register_folders() -> None:
    """Registers the plugin's model folders with ComfyUI, and makes them.

    The folder in models/ comes first, as those of ComfyUI's own do, unless the user has made
    another the default.
    """
    configured = _configured_folders()
    for name, extensions in EXTENSIONS.items():
        folder = Path(folder_paths.models_dir, name)
        taken = name in folder_paths.folder_names_and_paths and configured.get(name, True)
        folder_paths.add_model_folder_path(name, str(folder), is_default=not taken)
        paths, _ = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, set(extensions))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.warning("PFStorer could not make %s (%s)", folder, error)


def _configured_folders() -> dict[str, bool]:
    """Returns the folders that extra_model_paths.yaml names, and whether one is a default.

    ComfyUI keeps the order of the paths only, which does not tell where no folder was there before.
    """
    files = [Path(folder_paths.__file__).with_name("extra_model_paths.yaml")]
    files += [Path(file) for given in args.extra_model_paths_config or () for file in given]
    found: dict[str, bool] = {}
    for file in files:
        if file.is_file():
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            for section in content.values():
                for name in section or ():
                    default = bool(section.get("is_default", False))
                    found[name] = default or found.get(name, False)
    return found


def restorer_names() -> list[str]:
    """Returns the restorers to choose from, the bundled one first."""
    return [MINI_RESTORER, *folder_paths.get_filename_list(RESTORER_FOLDER)]


def checkpoint_names() -> list[str]:
    """Returns the Stable Diffusion checkpoints to choose from."""
    return folder_paths.get_filename_list("checkpoints")


def vae_names() -> list[str]:
    """Returns the files of autoencoders to choose from."""
    return folder_paths.get_filename_list("vae")


def restorer_path(name: str) -> Path:
    """Returns the file of a restorer that `restorer_names` lists.

    Raises:
        PFStorerError: there is no such file.
    """
    if name == MINI_RESTORER:
        if not MINI_RESTORER_PATH.is_file():
            raise PFStorerError(
                f"The bundled restorer is missing at {MINI_RESTORER_PATH}; install PFStorer again."
            )
        return MINI_RESTORER_PATH
    return _find(name, RESTORER_FOLDER, "restorer")


def checkpoint_path(name: str) -> Path:
    """Returns the file of a Stable Diffusion checkpoint.

    Raises:
        PFStorerError: there is no such file.
    """
    return _find(name, "checkpoints", "checkpoint")


def vae_path(name: str) -> Path:
    """Returns the file of an autoencoder.

    Raises:
        PFStorerError: there is no such file.
    """
    return _find(name, "vae", "VAE")


def identity_names() -> list[str]:
    """Returns the identity adapters to choose from."""
    return folder_paths.get_filename_list(IDENTITY_FOLDER)


def embedding_names() -> list[str]:
    """Returns the files that tell persons apart to choose from."""
    return folder_paths.get_filename_list(EMBEDDING_FOLDER)


def embedding_path(name: str) -> Path:
    """Returns the file of a network that tells persons apart.

    Raises:
        PFStorerError: there is no such file.
    """
    return _find(name, EMBEDDING_FOLDER, "embedding")


def find_identity(name: str) -> Path:
    """Returns the file of an identity adapter.

    Raises:
        PFStorerError: there is no such file.
    """
    return _find(name, IDENTITY_FOLDER, "identity adapter")


def identity_path(name: str, free: bool = False) -> Path:
    """Returns where an identity adapter of a user's name is to be written.

    Args:
        name: file name, with or without ending; folders may stand before it.
        free: whether to add a number where a file of that name exists.

    Raises:
        PFStorerError: a name that no file can have everywhere, or that leaves the folder.
    """
    parts = name.replace("\\", "/").removesuffix(".safetensors").split("/")
    for part in parts:
        stem = part.split(".")[0].strip().upper()
        if (
            not part.strip(" .")
            or part != part.strip()
            or part.endswith(".")
            or any(c in '<>:"|?*' or not c.isprintable() for c in part)
            or stem in _RESERVED
            or len(part.encode()) > _LONGEST_NAME
            or len(name.encode(errors="replace")) > _LONGEST_PATH
        ):
            raise PFStorerError(
                f"'{name}' cannot be the name of an identity; use letters, digits, spaces, '-' and "
                "'_', with '/' between folders."
            )
    root = Path(folder_paths.get_folder_paths(IDENTITY_FOLDER)[0])
    path = root.joinpath(*parts[:-1], f"{parts[-1]}.safetensors")
    # A file that is a link is replaced itself; a folder that is one would be written through.
    if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(root)):
        raise PFStorerError(f"'{name}' leads out of the folder of identities; choose another name.")
    number = 2
    while free and path.exists():
        path = path.with_name(f"{parts[-1]}_{number}.safetensors")
        number += 1
    return path


def identity_name(path: Path) -> str:
    """Returns how an identity adapter's file is called in ComfyUI's lists."""
    root = Path(folder_paths.get_folder_paths(IDENTITY_FOLDER)[0])
    return str(path.relative_to(root))


def training_folder() -> Path:
    """Returns where the states of unfinished trainings are kept."""
    return Path(folder_paths.get_user_directory(), "pfstorer", "training")


def file_state(path: Path) -> tuple[str, int, int]:
    """Returns what changes when a file does: its path, time of change (ns) and size (bytes)."""
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


def load_base_restorer(
    restorer_path: str | os.PathLike[str], checkpoint_path: str | os.PathLike[str] | None = None
) -> tuple[Any, Any, Any]:
    """Loads a restorer and the diffusion model that it steers.

    A restorer file that says what its UNet predicts overrules what ComfyUI reads from the
    checkpoint, since it was trained so; one that does not say leaves it to ComfyUI.

    Args:
        restorer_path: restorer file of any known layout.
        checkpoint_path: Stable Diffusion checkpoint that the restorer was trained on; None for a
            restorer that brings its diffusion model along.

    Returns:
        (MODEL, CLIP, VAE). The MODEL must be given an LQ image before it is sampled.

    Raises:
        PFStorerError: a file that is missing, damaged or of another kind, or two that do not fit.
    """
    path = Path(restorer_path)
    restorer = restorer_files.load(path, operations=comfy.ops.manual_cast)
    weights: Mapping[str, Any] = restorer.bundled_state or {}
    if checkpoint_path is None:
        model, clip, vae = bundled.from_restorer(restorer, path)
    else:
        checkpoint = Path(checkpoint_path)
        if restorer.info.bundled is not None:
            raise PFStorerError(
                f"Restorer '{path.name}' works with its own diffusion model only, but checkpoint "
                f"'{checkpoint.name}' was chosen; choose 'bundled in restorer' instead."
            )
        model, clip, vae = _load_checkpoint(checkpoint)
        patches.check_fit(model.model.diffusion_model, restorer, f"'{checkpoint.name}'")
        _check_text_width(model, restorer.info, checkpoint)
        model = _with_prediction(model, restorer.info)
        weights = _stored_weights(checkpoint)
    digests = _unet_digests(weights, model)
    restorer.bundled_state = None  # the MODEL has it now
    return _with_restorer(model, clip, restorer, digests), clip, vae


def trained_size(model: Any) -> int:
    """Returns the side in pixels of the pictures that a restorer's MODEL was made for."""
    described = restoration(model).info.bundled
    if described is None:
        return STABLE_DIFFUSION_SIZE
    return int(described["unet"]["image_size"]) * int(described["latent"]["downscale"])


def restoration(model: Any) -> Restoration:
    """Returns what a restorer's MODEL carries along.

    Raises:
        PFStorerError: another MODEL.
    """
    attached = model.get_attachment(patches.KEY)
    if not isinstance(attached, Restoration):
        raise PFStorerError(
            "The MODEL has no restorer; connect the MODEL that 'Load Base Restorer' gives."
        )
    return attached


def _find(name: str, folder: str, kind: str) -> Path:
    found = folder_paths.get_full_path(folder, name)
    if found is None:
        places = " or ".join(folder_paths.get_folder_paths(folder))
        raise PFStorerError(f"There is no {kind} '{name}'; put the file into {places}.")
    return Path(found)


def _load_checkpoint(path: Path) -> tuple[Any, Any, Any]:
    if not path.is_file():
        raise PFStorerError(f"There is no checkpoint '{path}'; choose a Stable Diffusion one.")
    embeddings = folder_paths.get_folder_paths("embeddings")
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
        str(path), output_vae=True, output_clip=True, embedding_directory=embeddings
    )
    return model, clip, vae


def _check_text_width(model: Any, info: RestorerInfo, checkpoint: Path) -> None:
    # The UNets of Stable Diffusion 1.5 and 2.1 have the same residual blocks.
    found = model.model.model_config.unet_config.get("context_dim")
    if info.context_dim not in (None, found):
        raise PFStorerError(
            f"Restorer '{info.name}' was trained on a UNet whose text features are "
            f"{info.context_dim} wide, but those of '{checkpoint.name}' are {found} wide (768 in "
            "Stable Diffusion 1.5, 1024 in 2.1); choose the checkpoint that the restorer was "
            "trained on."
        )


def _with_prediction(model: Any, info: RestorerInfo) -> Any:
    wanted = PREDICTION_TYPES.get(info.prediction_type or "")
    if wanted is None or wanted == model.model.model_type:
        return model
    logger.info(
        "Restorer '%s' makes the checkpoint's UNet predict %s instead of %s",
        info.name,
        wanted.name,
        model.model.model_type.name,
    )
    model = model.clone()
    model.add_object_patch("model_sampling", model_sampling(model.model.model_config, wanted))
    return model


def _stored_weights(checkpoint: Path) -> Mapping[str, Any]:
    try:
        stored, _ = read_weights(checkpoint)  # mapped: only what is looked at is read
    except PFStorerError:  # ComfyUI could read it
        return {}
    inner = stored.get("state_dict", stored)
    return inner if isinstance(inner, Mapping) else {}


def _unet_digests(weights: Mapping[str, Any], model: Any) -> tuple[str, ...]:
    found = {name: weights.get(bundled.UNET_PREFIX + name) for name in DIGESTED}
    stored = {name: weight for name, weight in found.items() if isinstance(weight, Tensor)}
    if len(stored) < len(found):  # a checkpoint that names its weights in another way
        stored = model.model.diffusion_model.state_dict()
    return unet_digests(stored)


def _with_restorer(model: Any, clip: Any, restorer: BaseRestorer, digests: tuple[str, ...]) -> Any:
    restorer.to(model.model.get_dtype_inference()).eval().requires_grad_(False)
    mm.archive_model_dtypes(restorer)
    patcher = comfy.model_patcher.CoreModelPatcher(
        restorer, load_device=model.load_device, offload_device=model.offload_device
    )
    model = patches.patch_model(model, restorer)
    model.set_additional_models(patches.KEY, [patcher])
    prompt = None if clip is None else clip.encode_from_tokens_scheduled(clip.tokenize(""))
    model.set_attachments(patches.KEY, Restoration(restorer.info, prompt, digests))
    return model
