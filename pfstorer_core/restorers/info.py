"""What is known of a restorer beside its weights."""

from dataclasses import dataclass
from typing import Any

from ..errors import PFStorerError
from ..weights.described import DescribedKind

RESTORER_FILE = DescribedKind("pfstorer_restorer", version=1)
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class RestorerInfo:
    """What is known of a restorer beside its weights.

    Args:
        name: as its file or its maker calls it.
        prediction_type: "epsilon" or "v_prediction"; None where the file does not say.
        config: sizes that its family builds it from, a frozen dataclass.
        license: licence of the weights; empty where the file does not say.
        bundled: for a restorer with a UNet and an autoencoder of its own, how to build them.
        fingerprint: SHA-256 (hex) of its weights as they were read; training does not update it.
        context_dim: width of the text features of the UNet it was trained on, 768 for Stable
            Diffusion 1.5 and 1024 for 2.1; None where the file does not say.
        size: side in pixels of the pictures it was trained on; None where the file does not say.

    Raises:
        PFStorerError: another prediction type.
    """

    name: str
    prediction_type: str | None
    config: Any
    license: str
    bundled: dict[str, Any] | None
    fingerprint: str = ""
    context_dim: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            raise PFStorerError(
                f"The prediction type is {self.prediction_type!r}; expected one of "
                f"{', '.join(PREDICTION_TYPES)}."
            )


def info_of(values: dict[str, Any], config: Any) -> RestorerInfo:
    """Returns what a file's description says; `config` is what its family made of the sizes.

    Raises:
        TypeError, KeyError, ValueError: a value of another type, or one that lacks.
    """
    if not isinstance(values["bundled"], dict | None):
        raise TypeError("bundled is neither an object nor null")
    for name in ("context_dim", "size"):
        if type(values.get(name)) not in (int, type(None)):
            raise TypeError(f"{name} is neither a whole number nor null")
    return RestorerInfo(
        name=str(values["name"]),
        prediction_type=values["prediction_type"],
        config=config,
        license=str(values["license"]),
        bundled=values["bundled"],
        context_dim=values.get("context_dim"),
        size=values.get("size"),
    )
