"""Hostile checkpoints: pickles that would run code, or that ask for more memory than there is."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ENDINGS = ".ckpt", ".pt", ".safetensors"
HUGE = 2**40  # bytes or numbers
BOMB = 400 * 2**20  # bytes of zeros, which compress to a thousandth
MANY = 5_000_000  # operations of one byte


class Call:
    """Unpickles by calling a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def write_pickles(folder: Path, marker: Path) -> Iterator[tuple[str, Path]]:
    """Writes hostile checkpoints one after another.

    Args:
        folder: where they go.
        marker: file that appears if the code of one is run.

    Yields:
        What it does, and its path.
    """
    hostile = {**_calls(marker), **_tricks(marker), **_bombs()}
    for number, (name, content) in enumerate(hostile.items()):
        path = folder / f"hostile_{number}{ENDINGS[number % len(ENDINGS)]}"
        path.write_bytes(content)
        yield name, path


def _calls(marker: Path) -> dict[str, bytes]:
    """Checkpoints whose pickles call something, by what they call."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    calls = {
        "os.system": Call(os.system, touch),
        "os.mkdir": Call(os.mkdir, str(marker)),
        "builtins.exec": Call(exec, code),
        "builtins.eval": Call(eval, code),
        "builtins.open": Call(open, str(marker), "w"),
        "builtins.__import__": Call(__import__, "antigravity"),
        "builtins.getattr": Call(getattr, os, "system"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, touch))),
        "torch.hub.load": Call(torch.hub.load, "owner/name", "model"),
        "torch.load": Call(torch.load, str(marker)),
        "a call within a call": Call(eval, Call(str, code)),
    }
    made = {}
    for name, call in calls.items():
        try:
            contents = {"state_dict": {"a": torch.ones(2)}, "x": call}
            made[name] = _saved(contents)
            made[f"{name} in lists"] = _saved({"state_dict": {"a": [[[call]]]}})
        except (TypeError, pickle.PicklingError):  # a module cannot be pickled
            pass
        for protocol in (0, 4):
            try:
                made[f"{name}, protocol {protocol}"] = _archive(pickle.dumps({1: call}, protocol))
                made[f"{name}, no archive, protocol {protocol}"] = pickle.dumps(call, protocol)
            except (TypeError, pickle.PicklingError):
                pass
    return made


def _tricks(marker: Path) -> dict[str, bytes]:
    """Checkpoints that try to get past a reader that looks for known names."""
    argument = pickle.dumps(f"touch {marker}", 2)[2:-1]

    def call(module: bytes, name: bytes, before: bytes = b"") -> bytes:
        """A pickle that calls module.name(argument)."""
        return b"\x80\x02" + before + b"c" + module + b"\n" + name + b"\n" + argument + b"\x85R."

    def stacked(module: str, name: str) -> bytes:
        texts = b"".join(b"\x8c" + bytes([len(x)]) + x.encode() for x in (module, name))
        return b"\x80\x04" + texts + b"\x93" + argument + b"\x85R."

    evil = call(b"posix", b"system")
    legacy = io.BytesIO()
    hostile = {"x": Call(os.system, f"touch {marker}")}
    torch.save(hostile, legacy, _use_new_zipfile_serialization=False)
    old = io.BytesIO()
    with tarfile.open(fileobj=old, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("pickle"))
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        archive.writestr("b/data.pkl", evil)
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), script)
    return {
        "a dotted name of collections": _archive(call(b"collections", b"_sys.modules")),
        "a dotted name of torch": _archive(call(b"torch", b"os.system")),
        "torch's own import of os": _archive(call(b"torch.serialization", b"os.system")),
        "a dotted name, stacked": _archive(stacked("torch.serialization", "os.system")),
        "names with spaces": _archive(call(b"torch posix", b"system")),
        "names in other letters": _archive(call("t\u043erch".encode(), b"system")),
        "a name below a trainer's": _archive(call(b"omegaconf", b"os.system")),
        "a name that breaks the line": _archive(stacked("po\nsix", "system\u202e")),
        "a name of a megabyte": _archive(call(b"p" * 2**20, b"system")),
        "ten thousand names": _archive(
            b"\x80\x02" + b"".join(b"cm%d\nf\n0" % k for k in range(10_000)) + b"N."
        ),
        "INST": _archive(b"(" + argument + b"iposix\nsystem\n."),
        "OBJ": _archive(b"(cposix\nsystem\n" + argument + b"o."),
        "BUILD of a state": _archive(call(b"omegaconf", b"X")[:-1] + b"}(U\x01aK\x01ub."),
        "EXT codes": _archive(b"\x80\x02\x82\x01."),
        "a pickle within": _archive(pickle.dumps({"a": evil}, 2)),
        "two pickles": twice.getvalue(),
        "an archive of other folders": _archive(evil, "../../a/data.pkl"),
        "a script of TorchScript": script.getvalue(),
        "the format before archives": legacy.getvalue(),
        "the format before that": old.getvalue(),
        "a persistent id": _archive(b"\x80\x02(U\x07storagecposix\nsystem\ntQ."),
        "no end": _archive(b"\x80\x02}"),
        "an empty stack": _archive(b"\x80\x02R."),
        "dicts in themselves": _archive(b"\x80\x02}q\x00U\x01ah\x00s."),
    }


def _bombs() -> dict[str, bytes]:
    """Checkpoints that ask for more memory than there is."""

    def call(module: str, name: str, argument: bytes) -> bytes:
        return _archive(f"\x80\x02c{module}\n{name}\n".encode("latin-1") + argument + b"\x85R.")

    number = b"\x8a\x06" + HUGE.to_bytes(6, "little")
    tensors = {
        "a tensor of one number, repeated": torch.ones(1).expand(2**20, 2**20),
        "windows of a tensor": torch.ones(2**10).as_strided((2**10, 2**9, 2**9), (0, 1, 1)),
        "a tensor without memory": torch.empty(2**20, 2**20, device="meta"),
        "a sparse tensor": torch.sparse_coo_tensor(
            torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (2**20, 2**20)
        ),
    }
    shared = torch.ones(2**16)
    names = "structcond_stage_model.input_blocks.0.0.weight", "input_blocks.1.0.spade.mlp_beta.bias"
    made = {
        name: _saved({"state_dict": dict.fromkeys(names, tensor)})
        for name, tensor in tensors.items()
    }
    return made | {
        "ten thousand tensors of one memory": _saved(
            {"state_dict": {f"{names[0]}{k}": shared.view(-1) for k in range(10_000)}}
        ),
        "bytearray of a terabyte": call("builtins", "bytearray", number),
        "a tensor of a terabyte": call("torch", "FloatTensor", number),
        "a storage of a terabyte": call("torch", "FloatStorage", number),
        "a text of a terabyte": _archive(b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b"x."),
        "bytes of a terabyte": _archive(b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"x."),
        "a number of 2 GiB": _archive(b"\x80\x02\x8b\xff\xff\xff\x7fx."),
        "five million lists": _archive(b"\x80\x02(" + b"]" * MANY + b"t."),
        "lists within lists": _archive(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
        "a compressed pickle": _archive(b"\x80\x02" + bytes(BOMB), compress=True),
        "a compressed weight": _weight_bomb(),
    }


def _saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _archive(content: bytes, name: str = "archive/data.pkl", compress: bool = False) -> bytes:
    """Returns a checkpoint of PyTorch with this pickle."""
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def _weight_bomb() -> bytes:
    """Returns a checkpoint whose weights are compressed."""
    file = io.BytesIO()
    size = BOMB // 4
    with zipfile.ZipFile(io.BytesIO(_saved({"a": torch.zeros(4)}))) as small:
        records = {info.filename: small.read(info) for info in small.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            if name.endswith("/data.pkl"):
                # the numbers of the tensor and of its storage, as pickle writes small ones
                content = content.replace(b"K\x04", b"J" + struct.pack("<i", size))
            archive.writestr(name, bytes(4 * size) if "/data/" in name else content)
    return file.getvalue()
