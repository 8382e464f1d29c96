"""Identity adapter: the personalization blocks of one person, and their file."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PFStorerError
from ..site_names import module_name
from ..weights.checks import check_numbers, check_shapes
from ..weights.described import DescribedKind, named
from ..weights.reading import read_weights
from ..weights.writing import write_safetensors
from .base import IdentityBlock
from .likeness import LikenessScale
from .methods import METHODS, PFSTORER

ADAPTER_FILE = DescribedKind("pfstorer_identity", version=1)
_SITE = re.compile(r"(middle_block|(input|output)_blocks\.\d{1,3})\.\d{1,3}", re.ASCII)
_MOST_SITES = 256


@dataclass(frozen=True)
class AdapterInfo:
    """What is known of an adapter beside its weights.

    Args:
        name: what the user calls the person.
        base_name: name of the restorer that it was trained on.
        base_fingerprint: fingerprint of that restorer, see `RestorerInfo`.
        context_dim: width of the base's text embedding.
        site_channels: per UNet block that has a personalization block, its channels.
        config: sizes of the blocks, of the method's `config` type.
        photos: number of photos that it was trained on.
        steps: training steps.
        date: day of the training, ISO 8601.
        training: settings of the training, plain values.
        unet_digest: see `host.sites.unet_digests`; empty where it is not known.
        method: name of the method in `methods.METHODS`.
        likeness: how like the person's photos and strangers look to the base; None where it was
            not measured.
    """

    name: str
    base_name: str
    base_fingerprint: str
    context_dim: int
    site_channels: dict[str, int]
    config: Any
    photos: int = 0
    steps: int = 0
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    training: dict[str, Any] = field(default_factory=dict)
    unet_digest: str = ""
    method: str = PFSTORER
    likeness: LikenessScale | None = None


class IdentityAdapter(nn.Module):
    """Personalization blocks of one person, one per site in the UNet.

    Args:
        info: description; it fixes the shapes.
        operations: namespace of the layers: `torch.nn`, or one of `comfy.ops`.

    Source: PFStorer (arXiv 2403.08436), section 3.
    """

    def __init__(
        self,
        info: AdapterInfo,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> None:
        super().__init__()
        self.info = info
        block = METHODS[info.method].block
        self.blocks = nn.ModuleDict(
            {
                module_name(site): block(
                    channels,
                    info.context_dim,
                    info.config,
                    dtype=dtype,
                    device=device,
                    operations=operations,
                )
                for site, channels in info.site_channels.items()
            }
        )

    @classmethod
    def initialise(cls, info: AdapterInfo, seed: int = 0) -> IdentityAdapter:
        """Returns an untrained adapter, in float32 on the CPU: it changes nothing."""
        adapter = cls(info)
        generator = torch.Generator().manual_seed(seed)
        for site in adapter.sites:
            adapter.block(site).initialise(generator)
        return adapter

    @property
    def person(self) -> str:
        """What the user calls the person, or "unnamed"."""
        return self.info.name or "unnamed"

    @property
    def sites(self) -> tuple[str, ...]:
        """The UNet blocks that have a personalization block."""
        return tuple(self.info.site_channels)

    def block(self, site: str) -> IdentityBlock:
        """Returns the block of a site, for example "input_blocks.1.0".

        Raises:
            KeyError: the adapter has none there.
        """
        return self.blocks[module_name(site)]  # type: ignore[return-value]

    def copy_with(self, operations: Any, dtype: torch.dtype | None = None) -> IdentityAdapter:
        """Returns a frozen copy on the CPU with other layer types, for use in a host."""
        copied = IdentityAdapter(self.info, dtype=dtype, operations=operations)
        # cast before: the host's layers may keep the tensors that they are given
        copied.load_state_dict({k: v.to(dtype or v.dtype) for k, v in self.state_dict().items()})
        return copied.eval().requires_grad_(False)

    def save(self, path: str | os.PathLike[str], dtype: torch.dtype | None = torch.float16) -> None:
        """Writes the adapter, atomically.

        Args:
            path: ends in .safetensors.
            dtype: type of the stored weights; None keeps theirs.

        Raises:
            PFStorerError: see `write_safetensors`; or weights that are not finite in that type.
        """
        tensors = {key: value.to(dtype or value.dtype) for key, value in self.state_dict().items()}
        for key, value in tensors.items():
            if not value.isfinite().all():
                raise PFStorerError(
                    f"The adapter's weight {key} is not finite, so it was not saved; train it "
                    "again with a lower learning rate."
                )
        write_safetensors(path, tensors, ADAPTER_FILE.metadata(dataclasses.asdict(self.info)))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str | None = None,
        operations: Any = torch.nn,
    ) -> IdentityAdapter:
        """Reads an adapter without running code of the file.

        Raises:
            PFStorerError: no file, another kind of file, a damaged one or one of a newer version.
        """
        state, metadata = read_weights(path)
        info = ADAPTER_FILE.read(metadata, f"Identity adapter '{Path(path).name}'", _parse)
        if info is None:
            raise PFStorerError(
                f"'{Path(path).name}' is no identity adapter; choose a file that 'Save Identity "
                "Adapter' wrote."
            )
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        subject = f"Identity adapter '{Path(path).name}'"
        check_shapes(subject, tensors, cls(info, device="meta").state_dict(), "adapter")
        check_numbers(subject, tensors)
        adapter = cls(info, dtype=dtype, device=device, operations=operations)
        adapter.load_state_dict(state)
        return adapter.eval().requires_grad_(False)


def _parse(values: dict[str, Any]) -> AdapterInfo:
    # Files of the first version name no method.
    method = named(METHODS, values.get("method", PFSTORER), "method of personalization")
    config = method.config(**values.pop("config"))
    likeness = values.pop("likeness", None)
    if likeness is not None:
        likeness = LikenessScale(**{key: float(value) for key, value in likeness.items()})
    info = AdapterInfo(**values, config=config, likeness=likeness)
    sites = info.site_channels
    texts = (info.name, info.base_name, info.base_fingerprint, info.date, info.unet_digest)
    numbers = (info.context_dim, info.photos, info.steps, *sites.values())
    if not all(isinstance(x, str) for x in texts):
        raise TypeError("a text is of another type")
    if not isinstance(info.training, dict):
        raise TypeError("a setting is of another type")
    if not all(type(x) is int and 0 <= x <= 2**20 for x in numbers):
        raise TypeError("a number is of another type or size")
    if any(c % 32 or c == 0 for c in sites.values()) or info.context_dim == 0:
        raise ValueError("sizes that no UNet has")
    if not 0 < len(sites) <= _MOST_SITES or not all(_SITE.fullmatch(site) for site in sites):
        raise ValueError("blocks that no UNet has")
    return info
