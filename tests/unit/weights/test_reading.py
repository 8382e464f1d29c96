import os
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch

from pfstorer_core.errors import PFStorerError
from pfstorer_core.weights.reading import read_weights

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(4, dtype=torch.float16)}


class RunsOnLoad:
    """Unpickles by calling a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def assert_weights(content: dict[str, Any]) -> None:
    assert content.keys() == WEIGHTS.keys()
    for key, tensor in WEIGHTS.items():
        assert content[key].dtype == tensor.dtype
        assert torch.equal(content[key], tensor)


@pytest.mark.parametrize("name", ["w.safetensors", "misnamed.ckpt"])
def test_safetensors(name: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(WEIGHTS, tmp_path / name, metadata={"made": "here"})
    content, metadata = read_weights(tmp_path / name)
    assert_weights(content)
    assert metadata == {"made": "here"}


@pytest.mark.parametrize("name", ["w.ckpt", "misnamed.safetensors"])
def test_torch_archive(name: str, tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / name)
    content, metadata = read_weights(tmp_path / name)
    assert_weights(content)
    assert metadata == {}


def test_traces_of_trainers_are_inert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        patch.setitem(sys.modules, module.__name__, module)
        state = {"best_model_score": numpy.float64(0.5), "dirpath": Path("logs")}
        callbacks = {module.ModelCheckpoint: state, "last": module.ModelCheckpoint()}
        torch.save({"state_dict": WEIGHTS, "callbacks": callbacks}, tmp_path / "w.ckpt")
    allowed = set(torch.serialization.get_safe_globals())
    content, _ = read_weights(tmp_path / "w.ckpt")
    assert_weights(content["state_dict"])
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_code_in_an_archive_is_not_run(tmp_path: Path) -> None:
    path, witness = tmp_path / "evil.ckpt", tmp_path / "was here"
    torch.save({"state_dict": WEIGHTS, "x": RunsOnLoad(os.mkdir, str(witness))}, path)
    with pytest.raises(PFStorerError, match=r"'evil.ckpt' asks for \w+\.mkdir .* could run code"):
        read_weights(path)
    assert not witness.exists()
    # The same file does run its code where pickles are trusted.
    torch.load(path, weights_only=False)
    assert witness.exists()


@pytest.mark.parametrize(
    ("function", "named"),
    [(eval, r"__builtin__\.eval"), (torch.hub.load, r"torch\.hub\.load")],
)
def test_code_of_known_packages_is_not_run(function: Any, named: str, tmp_path: Path) -> None:
    torch.save({"x": RunsOnLoad(function, "1 + 1")}, tmp_path / "evil.ckpt")
    with pytest.raises(PFStorerError, match=rf"asks for {named} .* could run code"):
        read_weights(tmp_path / "evil.ckpt")


def test_code_of_newer_pickles_is_not_run(tmp_path: Path) -> None:
    path, witness = tmp_path / "evil.ckpt", tmp_path / "was here"
    with zipfile.ZipFile(path, "w") as archive:
        evil = pickle.dumps(RunsOnLoad(os.mkdir, str(witness)), protocol=4)
        archive.writestr("archive/data.pkl", evil)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(PFStorerError, match=r"asks for \w+\.mkdir .* could run code"):
        read_weights(path)
    assert not witness.exists()


def test_bare_pickle_is_not_read(tmp_path: Path) -> None:
    path, witness = tmp_path / "evil.ckpt", tmp_path / "was here"
    path.write_bytes(pickle.dumps(RunsOnLoad(os.mkdir, str(witness))))
    with pytest.raises(PFStorerError, match=r"'evil.ckpt' is a bare pickle, which could run code"):
        read_weights(path)
    assert not witness.exists()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_truncated(kind: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    if kind == "torch":
        torch.save(WEIGHTS, path)
    else:
        safetensors.torch.save_file(WEIGHTS, path)
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(PFStorerError, match=r"^'cut.safetensors' is truncated, damaged or no file"):
        read_weights(path)


def test_damaged_pickle(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.ckpt", "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02garbage")
    with pytest.raises(PFStorerError, match=r"'w.ckpt' is truncated, damaged or no file"):
        read_weights(tmp_path / "w.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"'w.ckpt' is empty"),
        (b"<!DOCTYPE html><html>", r"'w.ckpt' is a web page; expected"),
        (b"version https://git-lfs.github.com/spec/v1", r"'w.ckpt' is a Git LFS pointer"),
        (b"GGUF\x03\x00\x00\x00", r"'w.ckpt' is a GGUF file"),
        (b"\x89PNG\r\n\x1a\n", r"'w.ckpt' is of an unknown format"),
        (b"abc", r"'w.ckpt' is of an unknown format"),
    ],
)
def test_other_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.ckpt").write_bytes(content)
    with pytest.raises(PFStorerError, match=message):
        read_weights(tmp_path / "w.ckpt")


def test_other_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(PFStorerError, match=r"'w.ckpt' .*no PyTorch checkpoint in this zip"):
        read_weights(tmp_path / "w.ckpt")


def test_single_tensor(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "w.pt")
    with pytest.raises(PFStorerError, match=r"'w.pt' holds one Tensor instead of weights by name"):
        read_weights(tmp_path / "w.pt")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(PFStorerError, match=r"nothing.ckpt' does not exist"):
        read_weights(tmp_path / "nothing.ckpt")
    with pytest.raises(PFStorerError, match=r"is not a file"):
        read_weights(tmp_path)


class TestMemory:
    """What a checkpoint claims takes no memory before it is known to be there."""

    def refused(self, path: Path, content: Any, match: str) -> None:
        torch.save(content, path)
        with pytest.raises(PFStorerError, match=match):
            read_weights(path)

    def test_views_larger_than_their_memory(self, tmp_path: Path) -> None:
        huge = torch.ones(1).expand(2**20, 2**20)
        self.refused(tmp_path / "w.ckpt", {"a": huge}, r"'w.ckpt' .*it claims \d+ bytes")
        self.refused(tmp_path / "w.ckpt", {"state_dict": {"a": huge}}, r"it claims \d+ bytes")

    def test_weights_that_share_memory_are_read(self, tmp_path: Path) -> None:
        tied = torch.ones(5000)
        torch.save({"a": tied, "b": tied}, tmp_path / "w.ckpt")
        assert torch.equal(read_weights(tmp_path / "w.ckpt")[0]["b"], tied)

    @pytest.mark.parametrize(
        ("pickled", "match"),
        [
            (b"\x80\x02" + bytes(80 * 2**20), r"its description of the weights has \d+ bytes"),
            (b"\x80\x02(" + b"]" * 2_100_000 + b"t.", r"in more than 2000000 steps"),
        ],
    )
    def test_large_pickles(self, pickled: bytes, match: str, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "w.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("w/data.pkl", pickled)
        with pytest.raises(PFStorerError, match=match):
            read_weights(tmp_path / "w.ckpt")

    def test_many_names_of_code_make_one_short_sentence(self, tmp_path: Path) -> None:
        names = b"".join(b"cm%d\nf\n0" % k for k in range(1000))
        with zipfile.ZipFile(tmp_path / "w.ckpt", "w") as archive:
            archive.writestr("w/data.pkl", b"\x80\x02" + names + b"N.")
        with pytest.raises(PFStorerError, match=r"asks for m0.f, .* and 997 others when") as caught:
            read_weights(tmp_path / "w.ckpt")
        assert len(str(caught.value)) < 300


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process maps")
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_lack_of_memory_is_no_damage(kind: str, tmp_path: Path) -> None:
    import resource

    path, large = tmp_path / "w.safetensors", {"large": torch.zeros(2**24)}  # 64 MiB
    torch.save(large, path) if kind == "torch" else safetensors.torch.save_file(large, path)
    read_weights(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**24, hard))
    try:
        with pytest.raises(PFStorerError, match=r"^There is not enough memory to read 'w\.safe"):
            read_weights(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
