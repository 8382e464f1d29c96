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
from pfstorer_core.files import (
    _PARTIAL,
    _partial,
    check_writable,
    read_weights,
    write_safetensors,
)

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


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "w.safetensors"
    write_safetensors(path, WEIGHTS, {"made": "here"})
    content, metadata = read_weights(path)
    assert_weights(content)
    assert metadata == {"made": "here"}
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


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


def test_written_name_must_fit(tmp_path: Path) -> None:
    with pytest.raises(PFStorerError, match=r"'w.ckpt' must end in .safetensors"):
        write_safetensors(tmp_path / "w.ckpt", WEIGHTS, {})


def test_disk_full_leaves_the_old_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "w.safetensors"
    write_safetensors(path, WEIGHTS, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(PFStorerError, match=r"w.safetensors' could not be written .*too large"):
            write_safetensors(path, {"large": torch.zeros(1000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
    assert_weights(read_weights(path)[0])


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    left, probe, living = (
        tmp_path / f".{name}.safetensors.{digit * 32}.part"
        for name, digit in (("other", "a"), ("probe", "b"), ("other", "c"))
    )
    names = (".notes.part", ".film.safetensors.part", ".w.safetensors.download.part")
    foreign = [tmp_path / name for name in names]
    for file in (left, probe, living, *foreign):
        file.write_bytes(b"half")
        if file != living:
            os.utime(file, (0, 0))
    write_safetensors(path, WEIGHTS, {})
    assert set(tmp_path.iterdir()) == {path, living, *foreign}


def test_a_killed_writers_and_probes_names_are_known() -> None:
    for name in ("w.safetensors", "probe.safetensors"):
        assert _PARTIAL.fullmatch(_partial(Path(name)).name)


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.safetensors" / "content").mkdir(parents=True)
    for path in (tmp_path / "file" / "w.safetensors", tmp_path / "folder.safetensors"):
        with pytest.raises(PFStorerError, match=r"could not be written"):
            write_safetensors(path, WEIGHTS, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.safetensors"]


class TestDigest:
    """Files of our own carry a digest, so that a flipped bit does not go unseen."""

    def test_no_flipped_bit_changes_what_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        write_safetensors(path, {"a": torch.arange(4.0)}, {"made": "here"})
        whole = path.read_bytes()
        refused = 0
        for place in range(len(whole) * 8):
            content = bytearray(whole)
            content[place // 8] ^= 1 << place % 8
            if b"pfstorer_sha256" not in content:  # then it is a file without digest
                continue
            path.write_bytes(content)
            try:
                tensors, metadata = read_weights(path)
            except PFStorerError:
                refused += 1
            else:
                assert torch.equal(tensors["a"], torch.arange(4.0)) and metadata == {"made": "here"}
        assert refused > 0.9 * (len(whole) - 15) * 8

    def test_a_changed_file_is_told_from_a_broken_one(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        write_safetensors(path, WEIGHTS, {"made": "here"})
        path.write_bytes(path.read_bytes().replace(b"here", b"home"))
        with pytest.raises(PFStorerError, match=r"'w.* was changed by another program .*copy it"):
            read_weights(path)

    def test_files_without_one_are_read(self, tmp_path: Path) -> None:
        safetensors.torch.save_file(WEIGHTS, tmp_path / "w.safetensors", metadata={"a": "b"})
        assert read_weights(tmp_path / "w.safetensors")[1] == {"a": "b"}

    def test_the_same_content_is_the_same_file(self, tmp_path: Path) -> None:
        texts = {f"key {k}": str(k) for k in range(20)}
        for name in ("a", "b"):
            write_safetensors(tmp_path / f"{name}.safetensors", WEIGHTS, texts)
        contents = {file.read_bytes() for file in tmp_path.iterdir()}
        assert len(contents) == 1
        assert safetensors.torch.load_file(tmp_path / "a.safetensors").keys() == WEIGHTS.keys()


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


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    for name in ("loop", "gone", "x" * 300):
        with pytest.raises(PFStorerError, match=r"does not exist|cannot be opened"):
            read_weights(tmp_path / name)


def test_a_folder_is_tried_before_long_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder", 4096)
    assert not list((tmp_path / "new" / "folder").iterdir())
    with pytest.raises(PFStorerError, match=r"MiB of free space, but \d+ MiB are needed"):
        check_writable(tmp_path, 2**60)
    (tmp_path / "file").touch()
    with pytest.raises(PFStorerError, match=r"Nothing can be written to '.*file' \(.*\); free"):
        check_writable(tmp_path / "file")
