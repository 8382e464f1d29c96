"""A text encoder whose encoding of any text is one learned prompt."""

from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor, nn


class FixedPrompt(nn.Module):
    """Text encoder whose encoding of any text is one learned prompt.

    Args:
        shape: (tokens, width) of the prompt.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.prompt = nn.Parameter(
            torch.empty(shape, dtype=dtype, device=device), requires_grad=False
        )
        self.dtypes = {dtype}

    def encode_token_weights(self, tokens: Any) -> tuple[Tensor, None]:
        """Returns the prompt (1, tokens, width), and no pooled output."""
        return self.prompt[None].to(mm.intermediate_device(), torch.float32), None

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Takes what a text encoder must take; a fixed prompt has no layers to choose from."""

    def reset_clip_options(self) -> None:
        """Takes what a text encoder must take."""

    def load_sd(self, state_dict: dict[str, Tensor]) -> Any:
        """Loads the prompt."""
        return self.load_state_dict(state_dict, strict=False)


class FixedPromptTokenizer:
    """Tokenizer for a text encoder that does not look at its tokens."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        pass

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **kwargs: Any
    ) -> dict[str, list[list[tuple[Any, ...]]]]:
        """Returns one token, whatever the text."""
        token = (0, 1.0, 0) if return_word_ids else (0, 1.0)
        return {"prompt": [[token]]}

    def state_dict(self) -> dict[str, Tensor]:
        """Returns no tensors."""
        return {}
