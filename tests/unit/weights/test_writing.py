import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pfstorer_core.errors import PFStorerError
from pfstorer_core.weights.reading import read_weights
from pfstorer_core.weights.writing import _PARTIAL, _partial, check_writable, write_safetensors

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(4, dtype=torch.float16)}


def assert_weights(content: dict[str, Any]) -> None:
    assert content.keys() == WEIGHTS.keys()
    for key, tensor in WEIGHTS.items():
        assert content[key].dtype == tensor.dtype
        assert torch.equal(content[key], tensor)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "w.safetensors"
    write_safetensors(path, WEIGHTS, {"made": "here"})
    content, metadata = read_weights(path)
    assert_weights(content)
    assert metadata == {"made": "here"}
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


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
