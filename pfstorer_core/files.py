"""Weight files: reading those of strangers without running their code, writing whole ones only."""

import contextlib
import errno
import hashlib
import json
import os
import pickletools
import re
import shutil
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import PFStorerError
from .memory import lacks_memory

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

_ABANDONED_AFTER = 600.0  # seconds without a change of a temporary file
_PARTIAL = re.compile(r"\..+\.safetensors\.[0-9a-f]{32}\.part")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DIGEST_KEY = "pfstorer_sha256"  # in the metadata of files that `write_safetensors` wrote
# Of the pickle in a checkpoint: PyTorch's reader takes about 100 bytes and 1 microsecond for each
# operation. Stable Diffusion with a restorer, averaged weights and an optimizer has 0.4 million.
_LARGEST_PICKLE = 64 * 2**20  # bytes
_MOST_OPERATIONS = 2_000_000
_SHARED = 4  # bytes of tensors per byte of their file, where several tensors share memory
_MOST_NAMED = 3  # in a sentence


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
        PFStorerError: no file, no weight file, a damaged one, a pickle that asks for code, or too
            little memory.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise PFStorerError(f"'{path}' does not exist; check the name and the folder.")
        if not path.is_file():
            raise PFStorerError(f"'{path}' is not a file; choose a file of weights.")
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
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    described = {**metadata, _DIGEST_KEY: _digest(stored, metadata)}
    partial = _partial(path)
    _remove_abandoned(path.parent)

    def write(file: BinaryIO) -> None:
        content = memoryview(safetensors.torch.save(stored, described))
        end = 8 + int.from_bytes(content[:8], "little")
        # The library writes metadata in any order; the same content is to be the same file.
        header = json.loads(bytes(content[8:end]))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(content[end:])

    write_whole(path, partial, write)


def write_whole(path: Path, partial: Path, write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a file that appears under its name only once it is complete.

    Args:
        path: the file; folders that lack are made, an old file is replaced.
        partial: temporary name in the same folder.
        write: writes everything into the opened file.

    Raises:
        PFStorerError: the file system refuses, or memory runs out; an old file is then unharmed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            # where the folder is no folder or read-only, it is not there either
            with contextlib.suppress(OSError):
                partial.unlink()
    # PyTorch's writer hides what the file system said behind a RuntimeError of its own
    except (OSError, safetensors.SafetensorError, MemoryError, RuntimeError) as error:
        refused = error.__context__ if isinstance(error, RuntimeError) else error
        reason = first_line(refused or error)
        advice = "free some space or choose another folder"
        if isinstance(refused, OSError) and refused.errno not in _NO_SPACE:
            advice = "see whether the folder is there and may be written to, or choose another"
        raise PFStorerError(f"'{path}' could not be written ({reason}); {advice}.") from error


def check_writable(folder: Path, needed: int = 0) -> None:
    """Makes a folder and finds out whether files can be written there, before long work begins.

    Args:
        folder: the folder.
        needed: bytes that will be written.

    Raises:
        PFStorerError: the file system refuses, or has too little room.
    """
    probe = _partial(folder / "probe.safetensors")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(4096))
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise PFStorerError(
            f"Nothing can be written to '{folder}' ({first_line(error)}); free some space or give "
            "ComfyUI the right to write there."
        ) from error
    if free < needed:
        raise PFStorerError(
            f"'{folder}' has {free / 2**20:.0f} MiB of free space, but {needed / 2**20:.0f} MiB "
            "are needed; free some space."
        )


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 (hex) over keys, types, shapes and bytes of weights."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Returns the SHA-256 (hex) over all that a file holds."""
    texts = json.dumps(sorted(metadata.items()))
    return hashlib.sha256(f"{fingerprint(tensors)} {texts}".encode()).hexdigest()


def _partial(path: Path) -> Path:
    """Returns a new temporary name, in the same folder because renames there are atomic."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


def _remove_abandoned(folder: Path) -> None:
    """Removes what writers left behind that were killed; one that still writes is left alone."""
    for partial in folder.glob(".*.part"):
        if not _PARTIAL.fullmatch(partial.name):
            continue
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _ABANDONED_AFTER:
                partial.unlink()


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata() or {}
    # What its header asks for may be beyond PyTorch in many ways.
    except Exception as error:
        _refuse_unreadable(path, error)
    digest = metadata.pop(_DIGEST_KEY, None)
    if digest is not None and digest != _digest(tensors, metadata):
        raise PFStorerError(
            f"'{path.name}' was changed by another program or damaged since it was written; copy "
            "it again, or make it anew."
        )
    return tensors, metadata


def _read_torch_archive(path: Path) -> dict[str, Any]:
    try:
        names = _pickled_names(path)
    # A damaged or hostile pickle can fail in any way; what matters is that none of it was run.
    except Exception as error:
        _refuse_unreadable(path, error)
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
        _refuse_unreadable(path, error)
    if not isinstance(content, Mapping):
        raise PFStorerError(
            f"'{path.name}' holds one {type(content).__name__} instead of weights by name; choose "
            "a checkpoint."
        )
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(content))
    if claimed > _SHARED * path.stat().st_size:
        _refuse_unreadable(path, ValueError(f"it claims {claimed} bytes of weights"))
    return dict(content)


def _tensors_in(content: Mapping[Any, Any]) -> Iterator[Tensor]:
    """Yields the tensors of a checkpoint and of the dictionaries in it."""
    for value in content.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from (inner for inner in value.values() if isinstance(inner, Tensor))


def _pickled_names(path: Path) -> set[str]:
    """Returns the names that the archive's pickle would import, found without reading it."""
    with zipfile.ZipFile(path) as archive:
        pickles = [x for x in archive.infolist() if x.filename.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise ValueError("no PyTorch checkpoint in this zip archive")
        # Names and numbers take little room, so a large one is no checkpoint's.
        if pickles[0].file_size > _LARGEST_PICKLE:
            raise ValueError(f"its description of the weights has {pickles[0].file_size} bytes")
        content = archive.read(pickles[0])
    names: set[str] = set()
    texts: list[str] = []  # the last two
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if number >= _MOST_OPERATIONS:
            raise ValueError(f"it describes its weights in more than {_MOST_OPERATIONS} steps")
        if operation.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", "."))
        elif operation.name == "STACK_GLOBAL":  # refused by PyTorch's reader: only named here
            names.add(".".join(texts))
        elif isinstance(argument, str):
            texts = [*texts[-1:], argument]
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
    first, *more = names
    named = ", ".join([first, *more[: _MOST_NAMED - 1]])
    if len(more) >= _MOST_NAMED:
        named += f" and {len(more) + 1 - _MOST_NAMED} others"
    raise PFStorerError(
        f"'{path.name}' asks for {named} when it is read, which could run code, so it "
        "was not loaded; get the file as .safetensors or from a source you trust."
    )


def _refuse_unreadable(path: Path, error: Exception) -> NoReturn:
    if lacks_memory(error):
        raise PFStorerError(
            f"There is not enough memory to read '{path.name}'; free some, by closing other "
            "programs for instance."
        ) from error
    raise PFStorerError(
        f"'{path.name}' is truncated, damaged or no file of weights ({first_line(error)}); "
        "download or copy it again."
    ) from error


def first_line(error: BaseException) -> str:
    """Returns what an error says in its first line, for use within a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
