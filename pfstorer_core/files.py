"""Weight files: reading those of strangers without running their code, writing whole ones only."""

import os
import pickletools
import re
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import PFStorerError

# Trainers leave these beside the weights. None is ever imported: an inert class stands in for it.
_INERT_MODULES = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf")
_INERT_NAMES = frozenset(
    {
        "_codecs.encode",
        "argparse.Namespace",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "typing.Any",
    }
)
_SIGNATURES = {
    b"<": "a web page",
    b"version https://git-lfs": "a Git LFS pointer",
    b"GGUF": "a GGUF file",
    b"\x80": "a bare pickle, which could run code when read",
}


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads a safetensors file or a PyTorch checkpoint, told apart by content.

    No code of the file is run: pickles go through PyTorch's weights-only reader, in which names
    of well-known trainers become inert objects and any other name that is no tensor's is refused.

    Args:
        path: the file.

    Returns:
        The stored dictionary, whose tensors may be mapped to the file and so want to be copied,
        and the metadata of a safetensors file (else empty).

    Raises:
        PFStorerError: no file, no weight file, a damaged one, or a pickle that asks for code.
    """
    path = Path(path)
    if not path.exists():
        raise PFStorerError(f"'{path}' does not exist; check the name and the folder.")
    if not path.is_file():
        raise PFStorerError(f"'{path}' is not a file; choose a file of weights.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise PFStorerError(
            f"'{path}' cannot be opened ({error.strerror}); check its permissions."
        ) from error
    if not head:
        raise PFStorerError(f"'{path.name}' is empty; download or copy it again.")
    if head.startswith(b"PK"):
        return _read_torch_archive(path), {}
    if head[8:9] == b"{":
        return _read_safetensors(path)
    kinds = (kind for start, kind in _SIGNATURES.items() if head.startswith(start))
    raise PFStorerError(
        f"'{path.name}' is {next(kinds, 'of an unknown format')}; expected a .safetensors file or "
        "a PyTorch checkpoint (.ckpt, .pth), so download it again or choose another file."
    )


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file that appears under its name only once it is complete.

    Args:
        path: the file, ending in .safetensors; folders that lack are made, an old file is replaced.
        tensors: tensors by key; they share no memory.
        metadata: texts by key.

    Raises:
        PFStorerError: another ending, or the file system refuses; an old file is then unharmed.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise PFStorerError(f"'{path.name}' must end in .safetensors; rename it.")
    # In the same folder, because a rename is atomic only within one file system.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as file:
                file.write(safetensors.torch.save(stored, dict(metadata)))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise PFStorerError(
            f"'{path}' could not be written ({error}); free some space or choose another folder."
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        _refuse_damaged(path, error)


def _read_torch_archive(path: Path) -> dict[str, Any]:
    try:
        names = _pickled_names(path)
    # A damaged or hostile pickle can fail in any way; what matters is that none of it was run.
    except Exception as error:
        _refuse_damaged(path, error)
    inert = {name for name in names if name in _INERT_NAMES or _package(name) in _INERT_MODULES}
    code = {name for name in names - inert if _package(name) not in ("torch", "collections")}
    if code:
        _refuse_code(path, sorted(code))
    try:
        with torch.serialization.safe_globals([_placeholder(name) for name in sorted(inert)]):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            _refuse_code(path, [refused[1]])
        _refuse_damaged(path, error)
    if not isinstance(content, Mapping):
        raise PFStorerError(
            f"'{path.name}' holds one {type(content).__name__} instead of weights by name; choose "
            "a checkpoint."
        )
    return dict(content)


def _pickled_names(path: Path) -> set[str]:
    """Returns the names that the archive's pickle would import, found without reading it."""
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise ValueError("no PyTorch checkpoint in this zip archive")
        operations = list(pickletools.genops(archive.read(pickles[0])))
    names: set[str] = set()
    texts: list[str] = []
    for operation, argument, _ in operations:
        if operation.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", "."))
        elif operation.name == "STACK_GLOBAL":  # refused by PyTorch's reader: only named here
            names.add(".".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)
    return names


def _package(name: str) -> str:
    return name.partition(".")[0]


def _placeholder(path: str) -> Any:
    """Makes a class that answers to a name, takes anything and does nothing."""
    module, _, name = path.rpartition(".")

    def ignore(self: object, *args: object, **kwargs: object) -> None:
        pass

    def new(cls: type, *args: object, **kwargs: object) -> object:
        return object.__new__(cls)

    members = {"__module__": module, "__new__": new, "__init__": ignore, "__setstate__": ignore}
    return type(name, (), members)


def _refuse_code(path: Path, names: Iterable[str]) -> NoReturn:
    raise PFStorerError(
        f"'{path.name}' asks for {', '.join(names)} when it is read, which could run code, so it "
        "was not loaded; get the file as .safetensors or from a source you trust."
    )


def _refuse_damaged(path: Path, error: Exception) -> NoReturn:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    raise PFStorerError(
        f"'{path.name}' is truncated, damaged or no file of weights ({reason}); download or copy "
        "it again."
    ) from error
