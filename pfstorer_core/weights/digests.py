"""Digests of weights, and of all that a file of them holds."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

DIGEST_KEY = "pfstorer_sha256"  # in the metadata of files that `write_safetensors` wrote


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 (hex) over keys, types, shapes and bytes of weights."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Returns the SHA-256 (hex) over all that a file holds."""
    texts = json.dumps(sorted(metadata.items()))
    return hashlib.sha256(f"{fingerprint(tensors)} {texts}".encode()).hexdigest()
