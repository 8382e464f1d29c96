"""What tells that memory is out."""

import pytest
import torch

from pfstorer_core.lack_of_memory import lacks_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Cannot allocate memory (os error 12)"),
        torch.OutOfMemoryError("Allocation on device"),
        RuntimeError("unable to mmap 9 bytes from file <w.ckpt>: Cannot allocate memory (12)"),
        OSError("The paging file is too small for this operation to complete. (os error 1455)"),
        RuntimeError("Could not allocate tensor. There is not enough GPU video memory available!"),
        RuntimeError(
            "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Invalid buffer size: 24.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
    ],
)
def test_what_says_that_memory_is_out(error: BaseException) -> None:
    assert lacks_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch"), ValueError("out of memory"), OSError("no such file")]
)
def test_what_says_something_else(error: BaseException) -> None:
    assert not lacks_memory(error)
