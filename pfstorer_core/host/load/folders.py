"""The plugin's folders in ComfyUI, and the files in them."""

import logging
import os
from pathlib import Path

import folder_paths
import yaml
from comfy.cli_args import args

from ...errors import PFStorerError
from .diffusers_folder import DIFFUSERS_INDEX, folder_files

logger = logging.getLogger(__name__)

RESTORER_FOLDER = "pfstorer_restorers"
IDENTITY_FOLDER = "pfstorer_identities"
EMBEDDING_FOLDER = "pfstorer_embeddings"
EXTENSIONS = {  # of the files that each folder lists
    RESTORER_FOLDER: {".safetensors", ".ckpt", ".pt", ".pth"},
    IDENTITY_FOLDER: {".safetensors"},
    EMBEDDING_FOLDER: {".onnx", ".safetensors"},
}
_RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}  # by Windows, with any ending
_RESERVED |= {f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³"}
_LONGEST_NAME = 180  # bytes, of 255 that file systems allow with number, ending, temporary name
_LONGEST_PATH = 1000  # bytes below the folder of identities
_DIFFUSERS = "diffusers/"  # what stands before the names of such folders
MINI_RESTORER = "mini (bundled)"
SUPIR = "SUPIR in the MODEL"  # no file: what core's node has hung on the MODEL
MINI_RESTORER_PATH = Path(__file__).parents[2] / "assets" / "mini_restorer.safetensors"


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
    """Returns the restorers to choose from: the bundled one, SUPIR in a MODEL, files."""
    return [MINI_RESTORER, SUPIR, *folder_paths.get_filename_list(RESTORER_FOLDER)]


def checkpoint_names() -> list[str]:
    """Returns the Stable Diffusions to choose from: checkpoints, then diffusers folders."""
    files: list[str] = folder_paths.get_filename_list("checkpoints")
    return [*files, *sorted(_diffusers_folders())]


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
    """Returns the file, or the diffusers folder, of a Stable Diffusion.

    Raises:
        PFStorerError: there is none of that name.
    """
    if name.startswith(_DIFFUSERS) and not folder_paths.get_full_path("checkpoints", name):
        found = _diffusers_folders()
        if name not in found:
            places = " or ".join(folder_paths.get_folder_paths("diffusers"))
            raise PFStorerError(
                f"There is no folder '{name.removeprefix(_DIFFUSERS)}' with a model_index.json; "
                f"put the whole folder into {places}."
            )
        return found[name]
    return _find(name, "checkpoints", "checkpoint")


def checkpoint_state(path: Path) -> list[tuple[str, int, int]]:
    """Returns `file_state` of a checkpoint, or of the files of a diffusers folder."""
    return [file_state(file) for file in (folder_files(path).values() if path.is_dir() else [path])]


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


def _diffusers_folders() -> dict[str, Path]:
    """Returns the diffusers folders by the name that the list shows."""
    found: dict[str, Path] = {}
    for root in folder_paths.get_folder_paths("diffusers"):
        for place, folders, files in os.walk(root, followlinks=True):
            if DIFFUSERS_INDEX in files:
                folders.clear()  # what lies deeper are its parts
                name = _DIFFUSERS + Path(place).relative_to(root).as_posix()
                found.setdefault(name, Path(place))
    return found


def _find(name: str, folder: str, kind: str) -> Path:
    found = folder_paths.get_full_path(folder, name)
    if found is None:
        places = " or ".join(folder_paths.get_folder_paths(folder))
        raise PFStorerError(f"There is no {kind} '{name}'; put the file into {places}.")
    return Path(found)
