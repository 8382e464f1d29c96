"""Figures and pictures of a comparison."""

import math
from pathlib import Path

import pytest
import torch
import torchvision

from pfstorer_core.degradation.presets import PRESETS
from pfstorer_core.degradation.second_order import degrade
from pfstorer_core.drawn.portraits import portrait_set
from pfstorer_core.errors import PFStorerError
from pfstorer_core.measures import metrics
from pfstorer_core.measures.comparison import compare
from pfstorer_core.measures.face_crops import POINTS
from pfstorer_core.measures.figures import (
    AMONG_REFERENCES,
    BASE,
    HAARPSI,
    LPIPS,
    LQ,
    PERSONALIZED,
    PSNR,
    RESTORED,
    SIMILARITY,
    SSIM,
    TRUTH,
)
from pfstorer_core.measures.similarity import IdentityEmbedding, identity_similarity, load_embedding
from pfstorer_core.pictures.resizing import resize_bicubic

PERSON = 5_000_000


@pytest.fixture(scope="module")
def embedding() -> IdentityEmbedding:
    return load_embedding()


@pytest.fixture(scope="module")
def person() -> torch.Tensor:
    """Five views of a person: (5, 3, 128, 128)."""
    return portrait_set(PERSON, 5, seed=0)


@pytest.fixture(scope="module")
def spoilt(person: torch.Tensor) -> torch.Tensor:
    return degrade(person[:2], PRESETS["light"], torch.Generator().manual_seed(0))


class MeanColour:
    """An embedding that hand calculation can follow: the direction of the mean colour."""

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)


def plain(*colour: float, size: tuple[int, int] = (40, 40)) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(3, *size)


def test_quality_is_that_of_metrics(person: torch.Tensor, spoilt: torch.Tensor) -> None:
    result = compare(list(spoilt), truth=list(person[:2]))
    expected = {
        PSNR: metrics.psnr(spoilt, person[:2]),
        SSIM: metrics.ssim(spoilt, person[:2]),
        HAARPSI: metrics.haarpsi(spoilt, person[:2]),
    }
    for name, values in expected.items():
        assert torch.allclose(result.figures[RESTORED][name], values, atol=1e-4)
        assert result.mean(name) == pytest.approx(float(values.mean()), abs=1e-4)
    assert TRUTH in result.columns and result.figures[TRUTH] == {}
    assert math.isnan(result.mean(SIMILARITY)) and math.isnan(result.baseline)


def test_lpips_where_its_weights_are(
    person: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert LPIPS not in compare([person[0]], truth=[person[1]]).measures()
    torch.manual_seed(0)
    file = tmp_path / "hub" / "checkpoints" / metrics.LPIPS_WEIGHTS
    file.parent.mkdir(parents=True)
    state = {
        # LPIPS does not use the classifier: one value that fills its shape keeps the file small.
        key: torch.zeros(()).expand(value.shape) if key.startswith("classifier") else value
        for key, value in torchvision.models.alexnet().state_dict().items()
    }
    torch.save(state, file)
    result = compare([person[0]], truth=[person[1]])
    assert result.measures() == [PSNR, SSIM, HAARPSI, LPIPS]
    assert result.mean(LPIPS) == pytest.approx(float(metrics.lpips(person[:1], person[1:2])))
    assert not any("LPIPS" in note for note in result.notes)
    tiny = resize_bicubic(person[:2], (20, 20))
    notes = compare([tiny[0]], truth=[tiny[1]]).notes
    assert "LPIPS needs pictures of at least 32 px a side." in notes


def test_similarity_is_that_of_the_references(
    person: torch.Tensor, spoilt: torch.Tensor, embedding: IdentityEmbedding
) -> None:
    result = compare(list(spoilt), references=list(person[2:]), embedding=embedding)
    expected = identity_similarity(embedding, spoilt, person[2:])
    assert torch.allclose(result.figures[RESTORED][SIMILARITY], expected, atol=1e-5)
    assert math.isnan(result.mean(PSNR))
    # each reference left out in turn and compared with the others
    out = [
        identity_similarity(embedding, person[k, None], person[[j for j in (2, 3, 4) if j != k]])
        for k in (2, 3, 4)
    ]
    assert result.baseline == pytest.approx(float(torch.cat(out).mean()), abs=1e-5)


def test_a_reference_that_is_the_truth_is_named(
    person: torch.Tensor, embedding: IdentityEmbedding
) -> None:
    copy = resize_bicubic(person[:1], (96, 96))[0] * 0.9
    result = compare(
        [person[2]], truth=[person[0]], references=[person[1], copy], embedding=embedding
    )
    assert [note for note in result.notes if "same picture" in note] == [
        "Reference 2 is nearly the same picture as the truth, which makes the similarity look "
        "higher; leave it out."
    ]


def test_figures_by_hand() -> None:
    """Red, green and (red + green) / sqrt 2 as references."""
    references = [plain(1, 0, 0), plain(0, 1, 0), plain(1, 1, 0, size=(20, 30))]
    result = compare(
        [plain(1, 0, 0), plain(0, 0, 1)],
        lq=[plain(0, 1, 0)],
        references=references,
        embedding=MeanColour(),
    )
    root = math.sqrt(0.5)
    expected = {RESTORED: [(1 + root) / 3, 0.0], LQ: [(1 + root) / 3] * 2}
    for kind, values in expected.items():
        assert result.figures[kind][SIMILARITY].tolist() == pytest.approx(values, abs=1e-6)
    assert result.baseline == pytest.approx((0 + root + root) / 3, abs=1e-6)
    assert result.mean(SIMILARITY) == pytest.approx((1 + root) / 6, abs=1e-6)


def test_the_truth_decides_the_size(person: torch.Tensor) -> None:
    small = resize_bicubic(person[:1], (32, 32))
    large = resize_bicubic(person[:1], (256, 192))
    result = compare([large[0]], truth=[person[0]], lq=[small[0]])
    assert {kind: pictures[0].shape for kind, pictures in result.columns.items()} == {
        kind: (3, 128, 128) for kind in (LQ, RESTORED, TRUTH)
    }
    expected = metrics.psnr(resize_bicubic(large, (128, 128)), person[:1])
    assert result.mean(PSNR) == pytest.approx(float(expected), abs=1e-4)
    notes = " ".join(result.notes)
    assert "LQ: scaled from 32 x 32 to 128 x 128 px." in notes
    assert "restored: scaled from 192 x 256 to 128 x 128 px." in notes
    assert "restored: its proportions" in notes and "LQ: its proportions" not in notes


def test_one_truth_serves_all_and_other_counts_are_refused(person: torch.Tensor) -> None:
    pictures = list(person[:3])
    result = compare(pictures, truth=[person[0]])
    assert result.figures[RESTORED][PSNR][0] == math.inf
    assert (result.figures[RESTORED][PSNR][1:] < 30).all()
    with pytest.raises(PFStorerError, match="2 pictures of 'truth' but 3 restored; give 1 or 3"):
        compare(pictures, truth=pictures[:2])
    with pytest.raises(PFStorerError, match="3 pictures of 'LQ' but 1 restored; give 1, in"):
        compare(pictures[:1], truth=pictures[:1], lq=pictures)


def test_there_must_be_something_to_compare_with(person: torch.Tensor) -> None:
    with pytest.raises(PFStorerError, match="Neither truth nor references are connected"):
        compare([person[0]], lq=[person[1]])
    with pytest.raises(PFStorerError, match="No restored picture"):
        compare([], truth=[person[0]])


@pytest.mark.parametrize("value", [math.nan, math.inf, 255.0])
def test_a_picture_of_impossible_values_is_named(person: torch.Tensor, value: float) -> None:
    broken = person[1].clone()
    broken[0, 3, 3] = value
    with pytest.raises(PFStorerError, match="Picture 2 of 'restored' has values"):
        compare([person[0], broken], truth=[person[0]])


def test_values_a_little_outside_are_clamped(person: torch.Tensor) -> None:
    result = compare([person[0] * 1.2 - 0.1], truth=[person[0]])
    expected = metrics.psnr((person[:1] * 1.2 - 0.1).clamp(0, 1), person[:1])
    assert result.mean(PSNR) == pytest.approx(float(expected), abs=1e-4)


def test_pictures_too_small_for_a_measure_have_the_others() -> None:
    clean = torch.rand(3, 8, 8)
    result = compare([clean * 0.9], truth=[clean])
    assert result.measures() == [PSNR]
    assert any(note == "SSIM needs pictures of at least 11 px a side." for note in result.notes)


def test_faces_are_cut_out_at_one_place_in_all_pictures_of_an_item() -> None:
    """The face of the picture is red; its surroundings, and a second small face, are not."""
    place = torch.tensor(POINTS) / 112

    def portrait(face: tuple[float, ...], top: int, left: int, side: int) -> torch.Tensor:
        picture = plain(0, 0, 1, size=(120, 160)).clone()
        picture[:, top : top + side, left : left + side] = torch.tensor(face)[:, None, None]
        return picture

    seen = []

    def find_faces(picture: torch.Tensor) -> list[torch.Tensor]:
        seen.append(picture)
        red = (picture[0] > 0.9).nonzero()
        if not len(red):
            return []
        top, left = red.amin(0).tolist()
        side = int(red.amax(0)[0]) - top
        return [torch.tensor([left, top]) + place * side, torch.tensor([1.0, 1.0]) + place * 9]

    result = compare(
        [portrait((0.5, 0.5, 0), 40, 70, 50), plain(0, 1, 0, size=(120, 160))],
        base=[portrait((1, 0, 0), 40, 70, 50), plain(0, 1, 0, size=(120, 160))],
        references=[portrait((1, 0, 0), 10, 20, 90), plain(0, 0, 1)],
        embedding=MeanColour(),
        find_faces=find_faces,
    )
    figures = {kind: result.figures[kind][SIMILARITY].tolist() for kind in (BASE, PERSONALIZED)}
    # found in the base's picture, where the restored one shows none
    assert figures[BASE][0] == pytest.approx(1.0, abs=1e-3)
    assert figures[PERSONALIZED][0] == pytest.approx(math.sqrt(0.5), abs=2e-3)
    assert math.isnan(figures[BASE][1]) and math.isnan(figures[PERSONALIZED][1])
    assert result.mean(SIMILARITY) == pytest.approx(math.sqrt(0.5), abs=2e-3)
    assert len(seen) == 2 + 2 + 2
    assert result.notes == [
        "Reference 1: there are 2 faces; the largest is compared.",
        "Reference 2: no face was found; it is left out of the identity similarity.",
        "Picture 1: there are 2 faces; the largest is compared.",
        "Picture 2: no face was found; it is left out of the identity similarity.",
        "One reference has no baseline; give two or more, to know what is high.",
    ]


def test_without_a_face_in_any_reference_there_is_no_similarity() -> None:
    result = compare(
        [plain(1, 0, 0)],
        references=[plain(1, 0, 0)] * 2,
        embedding=MeanColour(),
        find_faces=lambda picture: [],
    )
    assert result.measures() == []
    assert result.notes[-1].startswith("No reference shows a face")


def test_the_report_has_a_table_of_means_and_one_of_pictures(
    person: torch.Tensor, spoilt: torch.Tensor, embedding: IdentityEmbedding
) -> None:
    result = compare(
        list(person[:2]),
        truth=list(person[:2]),
        references=list(person[2:]),
        lq=list(spoilt),
        base=list(spoilt.flip(-1)),
        embedding=embedding,
    )
    lines = result.report().splitlines()
    header = lines[0].strip("| ").split(" | ")
    assert header[:4] == ["mean", PSNR, SSIM, HAARPSI] and header[-1] == SIMILARITY
    cells = [[c.strip() for c in x.split("|")[1:-1]] for x in lines if x.startswith("|")]
    rows = {label: values for label, *values in cells}
    assert list(rows)[2:6] == [LQ, BASE, PERSONALIZED, TRUTH]
    assert rows[PERSONALIZED][:2] == ["inf", "1.000"]
    assert rows[LQ][0] == f"{result.mean(PSNR, LQ):.2f}"
    assert rows[TRUTH][0] == "-" and rows[TRUTH][-1] == rows[PERSONALIZED][-1]
    assert rows[AMONG_REFERENCES][-1] == f"{result.baseline:.3f}"
    assert rows["2"][-1] == f"{float(result.figures[PERSONALIZED][SIMILARITY][1]):.3f}"
    assert any(
        line.startswith(f"{LQ}: PSNR {result.mean(PSNR, LQ):.2f} dB, SSIM 0.")
        for line in result.lines()
    )
    if not metrics.lpips_available():
        assert lines[-1].startswith("- LPIPS is left out: alexnet")


def test_a_large_batch_has_few_lines_and_all_notes_in_its_report() -> None:
    result = compare(
        [plain(0, 1, 0)] * 30,
        references=[plain(1, 0, 0)],
        embedding=MeanColour(),
        find_faces=lambda picture: [torch.tensor(POINTS)] * int(picture[0, 0, 0]),
    )
    lines = result.lines()
    assert len(lines) == 9
    assert lines[-1] == "The report has 23 more notes."
    assert result.report().count("no face was found") == 30


def test_progress_counts_to_its_end_and_can_stop_it() -> None:
    given = {
        "truth": [plain(1, 0, 0)],
        "lq": [plain(0, 1, 0)],
        "references": [plain(1, 0, 0), plain(0, 1, 0)],
        "embedding": MeanColour(),
    }
    restored = [plain(0, 1, 0)] * 3
    for find_faces, total in ((None, 6 + 2 + 9), (lambda _: [torch.tensor(POINTS)], 17 + 2 + 3)):
        seen: list[tuple[int, int]] = []
        compare(restored, find_faces=find_faces, progress=lambda *at, s=seen: s.append(at), **given)
        assert seen == [(k, total) for k in range(1, total + 1)]

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        compare(restored, progress=stop, **given)
