"""What is known of a restorer beside its weights, and how its file says it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PFStorerError
from .stablesr.encoder import EncoderConfig

METADATA_KEY = "pfstorer_restorer"
FORMAT_VERSION = 1
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class RestorerInfo:
    """What is known of a restorer beside its weights.

    Args:
        name: as its file or its maker calls it.
        prediction_type: "epsilon" or "v_prediction"; None where the file does not say.
        encoder: shape of its encoder.
        license: licence of the weights; empty where the file does not say.
        bundled: for a restorer with a UNet and an autoencoder of its own, how to build them.
        fingerprint: SHA-256 (hex) of encoder and SFT weights as they were read; training does not
            update it.
        context_dim: width of the text features of the UNet it was trained on, 768 for Stable
            Diffusion 1.5 and 1024 for 2.1; None where the file does not say.

    Raises:
        PFStorerError: another prediction type.
    """

    name: str
    prediction_type: str | None
    encoder: EncoderConfig
    license: str
    bundled: dict[str, Any] | None
    fingerprint: str = ""
    context_dim: int | None = None

    def __post_init__(self) -> None:
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            raise PFStorerError(
                f"The prediction type is {self.prediction_type!r}; expected one of "
                f"{', '.join(PREDICTION_TYPES)}."
            )


def read_info(metadata: Mapping[str, str], subject: str) -> RestorerInfo | None:
    """Returns the description in an own file's metadata, None for other files.

    Args:
        metadata: texts by key.
        subject: what the sentence of an error begins with.

    Raises:
        PFStorerError: a damaged description, or one of another version.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        header = json.loads(metadata[METADATA_KEY])
        version = header["format_version"]
        if version == FORMAT_VERSION:
            if not isinstance(header["bundled"], dict | None):
                raise TypeError("bundled is neither an object nor null")
            if type(header.get("context_dim")) not in (int, type(None)):
                raise TypeError("context_dim is neither a whole number nor null")
            return RestorerInfo(
                name=str(header["name"]),
                prediction_type=header["prediction_type"],
                encoder=EncoderConfig(**header["encoder"]),
                license=str(header["license"]),
                bundled=header["bundled"],
                context_dim=header.get("context_dim"),
            )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PFStorerError(
            f"{subject} has a damaged description in its metadata ({str(error).rstrip('.')}); "
            "download or save it again."
        ) from error
    raise PFStorerError(
        f"{subject} has format version {version}, but this plugin reads version {FORMAT_VERSION}; "
        "update the plugin."
    )
