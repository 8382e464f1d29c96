"""How running out of memory shows in plain torch."""

import torch

_SENTENCES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",  # of Linux, where a file is mapped
    "paging file is too small",  # of Windows, likewise
    "not enough gpu video memory",  # of DirectML
    "out_of_device_memory",  # of Intel's Level Zero
    "alloc_failed",  # of cuBLAS and cuDNN
    "invalid buffer size",  # of Apple's MPS
)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left; not every device has a class."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(s in text for s in _SENTENCES)
