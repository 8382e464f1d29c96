"""Damage done to files of weights."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

DIGEST_KEY = "pfstorer_sha256"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n"
ODD: Sequence[Any] = (  # values in place of others in a description
    None,
    True,
    -1,
    0,
    7,
    2**20,
    2**40,
    2**80,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 5000,
    "two\nlines\u202e",
    [],
    [1, 2],
    [[[]]],
    {},
    {"a": 1},
)
DEPTH = 100_000  # of nested lists
DTYPES = (torch.int8, torch.bool, torch.int64, torch.float8_e4m3fn, torch.bfloat16, torch.float64)


class Draft:
    """A file of weights taken apart, to be damaged and written again.

    Args:
        content: bytes of a whole file.
        choose: source of all randomness.
        path: where the damaged file goes.
    """

    def __init__(self, content: bytes, choose: random.Random, path: Path) -> None:
        self.content, self.choose, self.path = content, choose, path
        self.is_archive = content.startswith(b"PK")

    def write(self, content: bytes) -> None:
        """Writes the damaged file."""
        self.path.write_bytes(content)

    @property
    def header_end(self) -> int:
        """Where the weights begin, in bytes."""
        if self.is_archive:
            return min(4096, len(self.content) // 2)
        return 8 + int.from_bytes(self.content[:8], "little")

    def header(self) -> dict[str, Any]:
        """Returns the header of a safetensors file."""
        parsed: dict[str, Any] = json.loads(self.content[8 : self.header_end])
        return parsed

    def with_header(self, text: bytes) -> bytes:
        """Returns the file with another header."""
        return len(text).to_bytes(8, "little") + text + self.content[self.header_end :]

    def tensors(self) -> dict[str, Tensor]:
        """Returns the weights, which may be changed."""
        if self.is_archive:
            loaded = torch.load(io.BytesIO(self.content), weights_only=True)
            return dict(loaded["state_dict"])
        return safetensors.torch.load(self.content)

    def write_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Writes other weights with the old description, as another program would."""
        if self.is_archive:
            torch.save({"state_dict": tensors, "epoch": 3}, self.path)
            return
        metadata = self.header().get("__metadata__")
        if metadata is not None:
            metadata = {k: v for k, v in metadata.items() if k != DIGEST_KEY}
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        self.write(safetensors.torch.save(contiguous, metadata))


def truncated(draft: Draft) -> None:
    """Cuts the end off."""
    draft.write(draft.content[: draft.choose.randrange(len(draft.content))])


def appended(draft: Draft) -> None:
    """Adds bytes at the end."""
    draft.write(draft.content + draft.choose.randbytes(draft.choose.randint(1, 5000)))


def header_bits(draft: Draft) -> None:
    """Flips one to eight bits of the header."""
    draft.write(_flipped(draft, 0, draft.header_end))


def weight_bit(draft: Draft) -> None:
    """Flips one bit of the weights."""
    draft.write(_flipped(draft, draft.header_end, len(draft.content), most=1))


def zeros(draft: Draft) -> None:
    """Zeroes a stretch."""
    start = draft.choose.randrange(len(draft.content))
    end = min(len(draft.content), start + draft.choose.randint(1, 10_000))
    draft.write(draft.content[:start] + bytes(end - start) + draft.content[end:])


def other_shape(draft: Draft) -> None:
    """Gives some weights another shape."""
    tensors = draft.tensors()
    for key in draft.choose.sample(sorted(tensors), draft.choose.randint(1, 4)):
        tensors[key] = draft.choose.choice(_SHAPES)(tensors[key])
    draft.write_tensors(tensors)


def other_type(draft: Draft) -> None:
    """Stores some weights in another type."""
    tensors = draft.tensors()
    for key in draft.choose.sample(sorted(tensors), draft.choose.randint(1, 4)):
        tensors[key] = tensors[key].to(draft.choose.choice(DTYPES))
    draft.write_tensors(tensors)


def other_keys(draft: Draft) -> None:
    """Leaves weights out, adds some, or both."""
    tensors = draft.tensors()
    names = sorted(tensors)
    for key in draft.choose.sample(names, draft.choose.randint(0, len(names))):
        value = tensors.pop(key)
        if draft.choose.random() < 0.5:
            tensors[draft.choose.choice(_NAMES).format(key=key)] = value
    draft.write_tensors(tensors)


def not_finite(draft: Draft) -> None:
    """Puts NaN or infinity among the weights."""
    tensors = draft.tensors()
    floats = [key for key in sorted(tensors) if tensors[key].is_floating_point()]
    value = tensors[draft.choose.choice(floats)]
    place = draft.choose.randrange(value.numel())
    value.view(-1)[place] = draft.choose.choice([float("nan"), float("inf"), -float("inf")])
    draft.write_tensors(tensors)


def huge_header(draft: Draft) -> None:
    """Claims a header of up to 2^63 bytes."""
    size = draft.choose.choice([2**26, 2**31, 2**32 + 5, 2**40, 2**63, 2**64 - 1, 0, 1])
    draft.write(size.to_bytes(8, "little") + draft.content[8:])


def duplicate_keys(draft: Draft) -> None:
    """Names weights twice, the second time elsewhere or larger."""
    header = draft.header()
    keys = [key for key in header if key != "__metadata__"]
    key, other = draft.choose.choice(keys), draft.choose.choice(keys)
    text = json.dumps(header)[:-1] + f", {json.dumps(key)}: {json.dumps(header[other])}}}"
    draft.write(draft.with_header(text.encode()))


def header_values(draft: Draft) -> None:
    """Puts odd values into the entry of a weight."""
    header = draft.header()
    entry = header[draft.choose.choice([key for key in header if key != "__metadata__"])]
    entry[draft.choose.choice(["dtype", "shape", "data_offsets"])] = draft.choose.choice(
        [*ODD, [2**62, 2**62], [0, 2**40], [-1, 3], ["a"], "F4", "F8_E8M0", "C64", [0], [8, 0]]
    )
    draft.write(draft.with_header(json.dumps(header).encode()))


def deep_json(draft: Draft) -> None:
    """Nests the header or the description so deeply that no reader can follow."""
    header = draft.header()
    if draft.choose.random() < 0.5 or not header.get("__metadata__"):
        draft.write(draft.with_header(b"[" * DEPTH + b"]" * DEPTH))
        return
    metadata = header["__metadata__"]
    metadata.pop(DIGEST_KEY, None)
    for key in metadata:
        metadata[key] = '{"format_version": 1, "name": ' + "[" * DEPTH + "]" * DEPTH + "}"
    draft.write(draft.with_header(json.dumps(header).encode()))


def odd_description(draft: Draft) -> None:
    """Changes, removes or adds values in the description that the plugin wrote."""
    header = draft.header()
    metadata = header["__metadata__"]
    metadata.pop(DIGEST_KEY, None)
    key = next(iter(metadata))
    description = json.loads(metadata[key])
    for _ in range(draft.choose.randint(1, 3)):
        _spoil(description, draft.choose)
    metadata[key] = json.dumps(description)
    draft.write(draft.with_header(json.dumps(header).encode()))


def no_description(draft: Draft) -> None:
    """Removes the metadata or makes them something else."""
    header = draft.header()
    del header["__metadata__"]
    if draft.choose.random() < 0.7:
        header["__metadata__"] = draft.choose.choice([None, [], {"a": 1}, {}, {"": ""}, "text"])
    draft.write(draft.with_header(json.dumps(header).encode()))


def other_content(draft: Draft) -> None:
    """Puts something else in the file's place."""
    draft.write(
        draft.choose.choice(
            [
                PAGE,
                b"\xef\xbb\xbf" + PAGE,
                b"",
                b"\x00",
                bytes(10_000),
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
                b"GGUF\x03\x00\x00\x00",
                b"PK\x05\x06" + bytes(18),
                b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
                draft.choose.randbytes(5000),
                b'{"a": 1}',
            ]
        )
    )


def no_file(draft: Draft) -> None:
    """Puts a folder, a link that leads nowhere or round in a circle, or a pipe in its place."""
    kind = draft.choose.randrange(5)
    if kind == 0:
        draft.path.mkdir()
    elif kind == 1:
        draft.path.symlink_to(draft.path)
    elif kind == 2:
        draft.path.symlink_to(draft.path.with_name("nowhere"))
    elif kind == 3:
        draft.path.symlink_to(draft.path.parent)
    else:
        os.mkfifo(draft.path)


def archive_records(draft: Draft) -> None:
    """Renames, doubles, drops, compresses or shortens what lies in a zip archive."""
    with zipfile.ZipFile(io.BytesIO(draft.content)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    kind = draft.choose.randrange(5)
    place = draft.choose.randrange(len(records))
    name, data = records[place]
    if kind == 0:
        records[place] = (f"../../{name}", data)
    elif kind == 1:
        records.append((name + "x", data))
    elif kind == 2:
        del records[place]
    elif kind == 3:
        records[place] = (name, data[: len(data) // 2])
    compression = zipfile.ZIP_DEFLATED if kind == 4 else zipfile.ZIP_STORED
    with zipfile.ZipFile(draft.path, "w", compression) as archive:
        for name, data in records:
            archive.writestr(name, data)


ANY: tuple[Callable[[Draft], None], ...] = (
    truncated,
    appended,
    header_bits,
    weight_bit,
    zeros,
    other_shape,
    other_type,
    other_keys,
    not_finite,
    other_content,
    no_file,
)
SAFETENSORS = (*ANY, huge_header, duplicate_keys, header_values, deep_json)
DESCRIBED = (*SAFETENSORS, odd_description, odd_description, odd_description, no_description)
ARCHIVE = (*ANY, archive_records, archive_records)

_SHAPES: Sequence[Callable[[Tensor], Tensor]] = (
    lambda x: x[None],
    lambda x: x.flatten()[:-1],
    lambda x: x.T if x.ndim == 2 else x.flatten(),
    lambda x: torch.cat([x, x]),
    lambda x: x.new_zeros(0),
    lambda x: x.new_zeros(()),
    lambda x: x.new_zeros(0, 3, 3),
)
_NAMES = (
    "{key}.x",
    "x.{key}",
    "",
    "a\nb",
    "{key}\u202e",
    "input_blocks.999.0.spade.x",
    "lora_{key}",
)


def _flipped(draft: Draft, start: int, end: int, most: int = 8) -> bytes:
    content = bytearray(draft.content)
    for _ in range(draft.choose.randint(1, most)):
        content[draft.choose.randrange(start, end)] ^= 1 << draft.choose.randrange(8)
    return bytes(content)


def _spoil(description: dict[str, Any], choose: random.Random) -> None:
    """Changes one value somewhere in a description."""
    place: Any = description
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = choose.choice(keys)
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or choose.random() < 0.2:
            break
        place = inner
    kind = choose.random()
    if kind < 0.15:
        del place[key]
    elif kind < 0.25 and isinstance(place, dict):
        place["unknown"] = inner
    else:
        place[key] = choose.choice(ODD)
    if not description:
        description["format_version"] = 1
