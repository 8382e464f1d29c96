"""Base restorer: what every family of them gives to the host."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import PFStorerError
from ..weights.checks import check_numbers, check_shapes, part_of
from ..weights.described import named
from ..weights.digests import fingerprint
from .checkpoints import bundled_state, infer_context_dim, other_kind, tensors_of
from .info import RESTORER_FILE, RestorerInfo, info_of
from .steering import Modulation as Modulation
from .steering import Steering

FIRST_FAMILY = "stablesr"  # of files that were written before families had names


class BaseRestorer(Steering):
    """A restorer of a file: features of the LQ latent modulate residual blocks.

    A family is a subclass with an entry in `FAMILIES`, which names it.

    `info` and `bundled_state` may be replaced before saving. `bundled_state` has the checkpoint
    keys of a bundled restorer's UNet, autoencoder and prompt; it is no part of the module.

    Attributes:
        config_type: frozen dataclass of the family's sizes.
        config_key: where they stand in a file's description.

    Args:
        info: description of the restorer.
        bundled_state: further weights, by checkpoint key.
    """

    config_type: ClassVar[type]
    config_key: ClassVar[str] = "config"

    def __init__(self, info: RestorerInfo, bundled_state: dict[str, Tensor] | None = None) -> None:
        super().__init__(info)
        self.bundled_state = bundled_state

    @classmethod
    @abc.abstractmethod
    def select(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Picks the restorer out of a checkpoint's weights: by the checkpoint keys of `parts`.

        Nothing, where the checkpoint holds no restorer of this family.
        """

    @classmethod
    @abc.abstractmethod
    def infer_config(cls, weights: Mapping[str, Tensor]) -> Any:
        """Returns the sizes of a restorer whose file does not state them.

        Raises:
            ValueError: they cannot be told from the weights.
        """

    @classmethod
    @abc.abstractmethod
    def build(
        cls,
        info: RestorerInfo,
        weights: Mapping[str, Tensor],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> BaseRestorer:
        """Returns a restorer of the shapes that description and weights give.

        Args:
            info: description.
            weights: what `select` gave; only keys and shapes are looked at.
            operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.

        Raises:
            ValueError: shapes that make no restorer.
        """

    @classmethod
    @abc.abstractmethod
    def untrained(
        cls, info: RestorerInfo, site_channels: Mapping[str, int], **sizes: Any
    ) -> BaseRestorer:
        """Returns an untrained restorer for a UNet, in float32 on the CPU.

        Args:
            info: description.
            site_channels: per residual block of the UNet, its channels.
            sizes: further ones that the family has.
        """

    @property
    @abc.abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Its modules, by what their checkpoint keys begin with."""

    @classmethod
    def family(cls) -> str:
        """Returns the name of its family."""
        return next(name for name, known in FAMILIES.items() if known is cls)

    @classmethod
    def from_state_dict(
        cls,
        sd: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> BaseRestorer:
        """Builds the restorer that a state dict of any known layout holds.

        Known are StableSR's checkpoints (weights under "state_dict" among all those of Stable
        Diffusion, which are ignored), the files extracted for other user interfaces (encoder and
        SFT alone, with or without the UNet's prefix) and the own format; any base UNet.

        Args:
            sd: the file's dictionary; its tensors are copied.
            metadata: metadata of the safetensors file, if it is one.
            dtype: type of the weights; None keeps the file's.
            device: place of the weights; None is the CPU.
            operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.

        Raises:
            PFStorerError: other content, or weights that lack, do not fit or are not finite.
        """
        source = Source("This state dict", "restorer", metadata or {})
        return build_restorer(sd, source, dtype=dtype, device=device, operations=operations)

    @classmethod
    def initialise(
        cls,
        site_channels: Mapping[str, int],
        config: Any,
        *,
        name: str = "untrained",
        prediction_type: str | None = None,
        license: str = "",
        **sizes: Any,
    ) -> BaseRestorer:
        """Returns an untrained restorer, in float32 on the CPU.

        Args:
            site_channels: per site in the UNet, its channels, a multiple of 32.
            config: sizes; their type tells the family, such as `EncoderConfig` for StableSR's.
            name: name of the restorer.
            prediction_type: "epsilon" or "v_prediction".
            license: licence of the weights.
            sizes: further ones that the family has, such as StableSR's `hidden`.
        """
        info = RestorerInfo(name, prediction_type, config, license, bundled=None)
        families = [x for x in FAMILIES.values() if isinstance(config, x.config_type)]
        if not families:
            raise TypeError(f"no family of restorers is built from a {type(config).__name__}")
        restorer = families[0].untrained(info, site_channels, **sizes)
        restorer.info = dataclasses.replace(info, fingerprint=fingerprint(restorer.weights()))
        return restorer

    def take(
        self, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str
    ) -> BaseRestorer:
        """Gives a restorer that was built on "meta" copies of weights by checkpoint key.

        Made outside of inference mode, in which ComfyUI runs its nodes, they can be trained.
        """
        with torch.inference_mode(False):
            for prefix, module in self.parts.items():
                copies = {
                    key: tensor.to(device, dtype, copy=True)
                    for key, tensor in part_of(weights, prefix).items()
                }
                module.load_state_dict(copies, assign=True)
        return self

    def copy_for_training(self, dtype: torch.dtype) -> BaseRestorer:
        """Returns a copy on the CPU that can be trained, with layers of `torch.nn`."""
        weights = self.weights()
        return type(self).build(self.info, weights, device="meta").take(weights, dtype, "cpu")

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights by checkpoint key."""
        return {
            prefix + key: value
            for prefix, module in self.parts.items()
            for key, value in module.state_dict().items()
        }

    def state_dict_for_saving(self) -> dict[str, Tensor]:
        """Returns all weights by checkpoint key, those of a bundled restorer included."""
        return self.weights() | (self.bundled_state or {})


FAMILIES: dict[str, type[BaseRestorer]] = {}  # filled in `families`


@dataclass(frozen=True)
class Source:
    """Where a restorer comes from.

    Args:
        subject: what the sentence of an error begins with.
        name: what to call the restorer unless it has a name.
        metadata: texts of the safetensors file, if it is one.
    """

    subject: str
    name: str
    metadata: Mapping[str, str]


def build_restorer(
    sd: Mapping[str, Any],
    source: Source,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    operations: Any = torch.nn,
) -> BaseRestorer:
    """Does what `BaseRestorer.from_state_dict` does, for a file of a name; with the same errors."""
    subject, tensors = source.subject, tensors_of(sd)
    described = RESTORER_FILE.read(source.metadata, subject, _parse)
    families = FAMILIES.values() if described is None else (described[0],)
    found = ((family, family.select(tensors)) for family in families)
    family, given = next((x for x in found if x[1]), (None, {}))
    if family is None:
        raise PFStorerError(
            f"{subject} {other_kind(tensors)}; a restorer file of the StableSR family is needed, "
            "so choose another."
        )
    try:
        info = described[1] if described else _inferred(family, given, tensors, source.name)
        expected = family.build(info, given, device="meta").weights()
    # RuntimeError: PyTorch refuses sizes beyond any memory.
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise PFStorerError(
            f"{subject} has weights that make no restorer ({str(error).rstrip('.')}); choose a "
            "restorer of the StableSR family."
        ) from error
    check_shapes(subject, given, expected, "restorer")
    bundled = {} if info.bundled is None else bundled_state(subject, tensors, given)
    check_numbers(subject, given | bundled)
    stored = {tensor.dtype for tensor in given.values()}
    dtype = dtype or (stored.pop() if len(stored) == 1 else torch.float32)
    info = dataclasses.replace(info, fingerprint=fingerprint(given))
    # The module has no memory of its own; it takes over the one copy that is made of each tensor,
    # which needs the file no more.
    restorer = family.build(info, given, dtype=dtype, device="meta", operations=operations)
    with torch.inference_mode(False):
        restorer.bundled_state = {key: value.clone() for key, value in bundled.items()} or None
    return restorer.take(given, dtype, device or "cpu")


def _parse(values: dict[str, Any]) -> tuple[type[BaseRestorer], RestorerInfo]:
    family = named(FAMILIES, values.get("family", FIRST_FAMILY), "family of restorers")
    return family, info_of(values, family.config_type(**values[family.config_key]))


def _inferred(
    family: type[BaseRestorer],
    given: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    name: str,
) -> RestorerInfo:
    width, config = infer_context_dim(tensors), family.infer_config(given)
    return RestorerInfo(name, None, config, license="", bundled=None, context_dim=width)
