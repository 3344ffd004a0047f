"""Which accelerator does this machine have? As torch sees it, which SGLang goes by."""

import torch


def has_accelerator() -> bool:
    """Is there a device that SGLang would prefer to the CPU?"""
    return torch.accelerator.is_available()


def accelerator_name() -> str | None:
    """What is the first CUDA device called? None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
