"""What is measured of the faces in pictures: whose they are, and where their landmarks lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .faces import Face, FaceFinder, landmark_distance
from .recognition import Recognition
from .tables import SIMILARITY, TO_TRUTH

LANDMARKS = "landmarks (px)"


class FaceMeasures:
    """Measures pictures against the clean pictures of the same views, and against references.

    Args:
        networks: to judge by; the columns of all but the first carry their names.
        finder: adds the landmark distance; None leaves it out.
        clean: (M, 3, H, W) in [0, 1].
        faces: M places in the clean pictures.
    """

    def __init__(
        self,
        networks: Sequence[Recognition],
        finder: FaceFinder | None,
        clean: Tensor,
        faces: Sequence[Face],
    ):
        self._networks, self._finder = networks, finder
        self._clean, self._faces = clean, faces
        self._truth = [network.embed(clean, faces) for network in networks]  # (M, D) each
        self._known: list[Tensor] = []
        self._weights = torch.zeros(0)

    def add_references(
        self, references: Tensor, faces: Sequence[Face], compared: Tensor | None = None
    ) -> None:
        """Adds pictures that the similarity is measured to.

        Args:
            references: (R, 3, h, w) in [0, 1].
            faces: R places in them.
            compared: (M, R) bool, which of them each picture is compared with; None is all.
        """
        self._known = [network.embed(references, faces) for network in self._networks]
        if compared is None:
            compared = torch.ones(len(self._clean), len(references), dtype=torch.bool)
        self._weights = compared.float() / compared.sum(1, keepdim=True)  # (M, R)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Returns each measure (M,) of pictures (M, 3, H, W) in [0, 1] of the same views."""
        values = {}
        for k, network in enumerate(self._networks):
            clean = images is self._clean
            rows = self._truth[k] if clean else network.embed(images, self._faces)  # (M, D)
            if self._known:
                table = rows @ self._known[k].T  # (M, R)
                values[column(SIMILARITY, self._networks, k)] = (table * self._weights).sum(1)
            values[column(TO_TRUTH, self._networks, k)] = (rows * self._truth[k]).sum(1)
        if self._finder is not None:
            values[LANDMARKS] = landmark_distance(
                self._finder, images, self._clean, self._faces
            ).float()
        return values


def column(measure: str, networks: Sequence[Recognition], k: int) -> str:
    """Returns the name of the k-th network's measure."""
    return measure if k == 0 else f"{measure}, {networks[k].name}"


def described(networks: Sequence[Recognition]) -> str:
    """Returns which networks judge, and what they see, for the head of a table."""
    return "; ".join(f"{network.name} on {network.crop}" for network in networks)
