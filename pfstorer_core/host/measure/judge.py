"""Chooses what identities are compared with, and how faces are cut out for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ...errors import PFStorerError
from ...measures.comparison import FacePoints
from ...measures.similarity import IdentityEmbedding, load_embedding
from ..load import folders
from .faces import MODEL_FOLDER, face_points

AUTOMATIC = "automatic"
NONE = "none"
MINI_EMBEDDING = "mini (drawn portraits only)"
FIND_FACES, WHOLE_PICTURES = "find faces", "pictures are face crops"
FACES = (FIND_FACES, WHOLE_PICTURES)


@dataclass(frozen=True)
class Judge:
    """What identities are compared with.

    Args:
        embedding: None leaves the identity similarity out.
        find_faces: see `comparison.compare`.
        missing: why there is no embedding and what to do about it, as the second half of a
            sentence; empty where there is one, or none is wanted.
    """

    embedding: IdentityEmbedding | None = None
    find_faces: FacePoints | None = None
    missing: str = ""


def embedding_choices() -> list[str]:
    """Returns what to choose from: automatic, the files, the bundled one, none."""
    return [AUTOMATIC, *folders.embedding_names(), MINI_EMBEDDING, NONE]


def chosen_file(choice: str) -> Path | None:
    """Returns the file that a choice stands for, None where it needs none or there is none.

    Raises:
        PFStorerError: a file was chosen that is not there.
    """
    if choice in (MINI_EMBEDDING, NONE):
        return None
    if choice != AUTOMATIC:
        return folders.embedding_path(choice)
    names = folders.embedding_names()
    return folders.embedding_path(names[0]) if names else None


def embedding_state(choice: str) -> tuple[str, int, int] | None:
    """Returns what tells whether the file that a choice stands for has changed; None without one.

    Raises:
        PFStorerError: see `chosen_file`.
    """
    path = chosen_file(choice)
    return None if path is None else folders.file_state(path)


def choose_judge(choice: str, faces: str | None = None) -> Judge:
    """Loads what a choice of `embedding_choices` stands for.

    Real faces are compared by an ArcFace file of the user, which wants aligned face crops: faces
    are looked for by ComfyUI's own MediaPipe nodes. Embeddings of this plugin take whole portraits.
    "automatic" takes the first file; what it cannot use is left out and said. It never takes the
    bundled embedding, whose figures of real faces mean nothing.

    Args:
        choice: one of `embedding_choices`.
        faces: one of `FACES`; None looks for faces where that is not the user's choice.

    Raises:
        PFStorerError: the chosen file is missing, damaged, or needs a package that is missing.
    """
    if choice == NONE:
        return Judge()
    if choice == MINI_EMBEDDING:
        return Judge(load_embedding())
    path = chosen_file(choice)
    if path is None:
        folder = folder_paths.get_folder_paths(folders.EMBEDDING_FOLDER)[0]
        return Judge(
            missing=f"put an ArcFace network (.onnx) into {folder}, or choose '{MINI_EMBEDDING}' "
            "for pictures of the demo nodes."
        )
    try:
        embedding = load_embedding(path)
    except PFStorerError as error:
        if choice != AUTOMATIC:
            raise
        return Judge(missing=str(error))
    if path.suffix != ".onnx" or faces == WHOLE_PICTURES:
        return Judge(embedding)
    find_faces = face_points()
    if find_faces is None:
        missing = (
            f"'{path.name}' compares aligned face crops, and there is nothing to find faces with; "
            f"put ComfyUI's MediaPipe face model into models/{MODEL_FOLDER}"
        )
        if faces is not None:
            missing += f", or choose '{WHOLE_PICTURES}' if all are square crops of an upright face"
        return Judge(missing=f"{missing}.")
    return Judge(embedding, find_faces)
