"""Reading of weight files, those of strangers too: no code of theirs is run."""

import os
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import torch
from torch import Tensor

from ..errors import PFStorerError, first_line
from ..lack_of_memory import lacks_memory
from .digests import DIGEST_KEY, file_digest

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


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata() or {}
    # What its header asks for may be beyond PyTorch in many ways.
    except Exception as error:
        _refuse_unreadable(path, error)
    digest = metadata.pop(DIGEST_KEY, None)
    if digest is not None and digest != file_digest(tensors, metadata):
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
