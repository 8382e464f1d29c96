from pathlib import Path

import pytest
import safetensors.torch
import torch

from pfstorer_core.errors import PFStorerError
from pfstorer_core.weights.reading import read_weights
from pfstorer_core.weights.writing import write_safetensors

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(4, dtype=torch.float16)}


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
