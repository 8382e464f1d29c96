"""What tells that memory is out."""

import pytest
import torch

from pfstorer_core.memory import lacks_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Cannot allocate memory (os error 12)"),
        torch.OutOfMemoryError("Allocation on device"),
        RuntimeError("unable to mmap 9 bytes from file <w.ckpt>: Cannot allocate memory (12)"),
        OSError("The paging file is too small for this operation to complete. (os error 1455)"),
    ],
)
def test_what_says_that_memory_is_out(error: BaseException) -> None:
    assert lacks_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch"), ValueError("out of memory"), OSError("no such file")]
)
def test_what_says_something_else(error: BaseException) -> None:
    assert not lacks_memory(error)
