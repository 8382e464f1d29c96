"""Tests of the identity similarity, with the shipped embedding."""

import json
from pathlib import Path

import pytest
import torch
from onnx_networks import write_onnx_means

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures.embedding import EmbeddingConfig, EmbeddingNetwork
from pfstorer_core.measures.similarity import (
    EMBEDDING_FILE,
    MINI_EMBEDDING_PATH,
    IdentityEmbedding,
    identity_similarity,
    load_embedding,
    save_embedding,
)
from pfstorer_core.weights.reading import read_weights
from pfstorer_core.weights.writing import write_safetensors

UNSEEN = range(1_500_000, 1_500_008)  # persons that no training drew
SMALL = EmbeddingConfig(size=32, stem=8, widths=(8, 16), squeezed=4, features=8)


@pytest.fixture(scope="module")
def embedding() -> IdentityEmbedding:
    return load_embedding()


@pytest.fixture(scope="module")
def people() -> list[torch.Tensor]:
    """Four views of each unseen person: (4, 3, 128, 128)."""
    return [portrait_set(number, 4, seed=number) for number in UNSEEN]


def test_rows_have_unit_length(embedding: IdentityEmbedding, people: list[torch.Tensor]) -> None:
    rows = embedding.embed(people[0])
    assert rows.shape == (4, 128)
    assert rows.dtype == torch.float32
    assert torch.allclose(rows.norm(dim=1), torch.ones(4), atol=1e-5)


def test_a_batch_equals_its_items_and_repeats(
    embedding: IdentityEmbedding, people: list[torch.Tensor]
) -> None:
    images = torch.cat([views[:2] for views in people] * 3)  # more than one internal batch
    rows = embedding.embed(images)
    assert torch.equal(rows, embedding.embed(images))
    for k in (0, 5, 40):
        assert torch.allclose(rows[k : k + 1], embedding.embed(images[k : k + 1]), atol=1e-5)


def test_the_size_of_a_picture_hardly_matters(embedding: IdentityEmbedding) -> None:
    """The same view drawn at twice the size is the same person."""
    small, large = (portrait_set(UNSEEN[0], 2, seed=1, size=size) for size in (128, 256))
    alike = (embedding.embed(small) * embedding.embed(large)).sum(1)
    assert alike.min() > 0.9


def test_unseen_people_are_told_apart(
    embedding: IdentityEmbedding, people: list[torch.Tensor]
) -> None:
    """Each person is nearest to their own references, on average by a wide margin."""
    references, photos = ([views[k : k + 2] for views in people] for k in (0, 2))
    table = torch.stack(
        [
            torch.stack([identity_similarity(embedding, p, r).mean() for r in references])
            for p in photos
        ]
    )  # (photo's person, reference's person)
    own = table.diagonal()
    others = table[~torch.eye(len(table), dtype=torch.bool)].reshape(len(table), -1)
    assert (own > others.max(dim=1).values).all()
    assert own.mean() - others.mean() > 0.4


def test_a_softened_picture_is_still_that_person(
    embedding: IdentityEmbedding, people: list[torch.Tensor]
) -> None:
    """The measure follows who is seen, not how sharply."""
    generator = torch.Generator().manual_seed(0)
    own, others = [], []
    for k, views in enumerate(people):
        soft = degrade(views[2:], PRESETS["light"], generator)
        own.append(identity_similarity(embedding, soft, views[:2]).mean())
        others.append(identity_similarity(embedding, soft, people[k - 1][:2]).mean())
    assert torch.stack(own).mean() - torch.stack(others).mean() > 0.3


def test_similarity_is_the_mean_over_the_references(
    embedding: IdentityEmbedding, people: list[torch.Tensor]
) -> None:
    images, references = people[0][:2], people[1][:3]
    single = [identity_similarity(embedding, images, r[None]) for r in references]
    mean = torch.stack(single).mean(0)
    assert torch.allclose(identity_similarity(embedding, images, references), mean, atol=1e-5)
    assert torch.allclose(
        identity_similarity(embedding, images[:1], images[:1]), torch.ones(1), atol=1e-5
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64), r"\(3, 64, 64\); give \(B, 3, H, W\)"),
        (torch.zeros(1, 4, 64, 64), "give"),
        (torch.zeros(0, 3, 64, 64), "give"),
        (torch.full((1, 3, 64, 64), 255.0), "to 255, expected"),
        (torch.full((1, 3, 64, 64), torch.nan), "not finite"),
    ],
)
def test_wrong_pictures_are_named(
    embedding: IdentityEmbedding, images: torch.Tensor, message: str
) -> None:
    with pytest.raises(PFStorerError, match=message):
        embedding.embed(images)


def test_saving_and_loading_keeps_the_embedding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = EmbeddingNetwork(SMALL)
    network(torch.rand(8, 3, 32, 32))  # gives the norms statistics
    network.eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
    save_embedding(network, tmp_path / "new.safetensors")
    loaded = load_embedding(tmp_path / "new.safetensors")
    assert torch.allclose(loaded.embed(images), expected, atol=1e-5)


def _rewritten(path: Path, *, text: str | None = None, **tensors: torch.Tensor) -> Path:
    """The shipped file with another description or other tensors, under a new name."""
    weights, metadata = read_weights(MINI_EMBEDDING_PATH)
    if text is not None:
        metadata[EMBEDDING_FILE.key] = text
    write_safetensors(path, {**weights, **tensors}, metadata)
    return path


def test_files_that_hold_no_embedding_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "e.safetensors"
    with pytest.raises(PFStorerError, match="does not exist"):
        load_embedding(file)
    write_safetensors(file, {"a": torch.zeros(1)}, {})
    with pytest.raises(PFStorerError, match="holds no identity embedding"):
        load_embedding(file)
    file.write_bytes(MINI_EMBEDDING_PATH.read_bytes()[:5000])
    with pytest.raises(PFStorerError, match="truncated"):
        load_embedding(file)
    for text in ("{", "[]", "{}"):
        with pytest.raises(PFStorerError, match="describes itself wrongly"):
            load_embedding(_rewritten(file, text=text))
    with pytest.raises(PFStorerError, match="format version 2"):
        load_embedding(_rewritten(file, text='{"format_version": 2, "network": {}}'))
    with pytest.raises(PFStorerError, match="finite"):
        load_embedding(_rewritten(file, **{"head.1.bias": torch.full((128,), torch.inf)}))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"stem": 8}, "6 weights of a wrong shape"),
        ({"unheard": 1}, "cannot be read"),
        ({"size": 100}, "multiple"),
        ({"widths": []}, "from 1 to 4096"),
        ({"features": 10**9}, "from 1 to 4096"),
        ({"squeezed": "8"}, "from 1 to 4096"),
        (3, "cannot be read"),
    ],
)
def test_impossible_sizes_are_refused(sizes: object, message: str, tmp_path: Path) -> None:
    text = json.dumps({"format_version": 1, "network": sizes})
    with pytest.raises(PFStorerError, match=message):
        load_embedding(_rewritten(tmp_path / "e.safetensors", text=text))


def test_onnx_network(tmp_path: Path) -> None:
    """The network's input is RGB, (x - 127.5) / 127.5, one picture of the file's size at a time."""
    pytest.importorskip("onnxruntime")
    embedding = load_embedding(write_onnx_means(tmp_path / "face.onnx", [1, 3, 112, 112]))
    images = torch.rand(3, 3, 1, 1).expand(3, 3, 40, 60)
    expected = torch.nn.functional.normalize(images[:, :, 0, 0] * 2 - 1, dim=1)
    assert torch.allclose(embedding.embed(images), expected, atol=1e-4)
    alike = identity_similarity(embedding, images, images[:1])
    assert torch.allclose(alike, expected @ expected[0], atol=1e-5)


def test_onnx_sides_that_the_file_leaves_free_are_112(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    free = load_embedding(write_onnx_means(tmp_path / "free.onnx", [None, 3, None, None]))
    fixed = load_embedding(write_onnx_means(tmp_path / "fixed.onnx", [1, 3, 112, 112]))
    images = torch.rand(2, 3, 200, 150)
    assert torch.equal(free.embed(images), fixed.embed(images))


def test_onnx_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "x.onnx"
    with pytest.raises(PFStorerError, match="not a file"):
        load_embedding(file)
    file.write_bytes(b"no network")
    with pytest.raises(PFStorerError, match="damaged or no ONNX network"):
        load_embedding(file)
    with pytest.raises(PFStorerError, match="takes the inputs"):
        load_embedding(write_onnx_means(file, [1, 1, 112, 112]))
    pairs = load_embedding(write_onnx_means(file, [2, 3, 112, 112]))
    with pytest.raises(PFStorerError, match="cannot be run"):
        pairs.embed(torch.zeros(2, 3, 112, 112))
