"""Where a job runs: CPU or CUDA, one process or those that torchrun started."""

import os

import torch


def launch(device: str, precision: str):
    """Lightning's Fabric for one process, or for those that torchrun started; see `accelerator` for the device."""
    # Fabric takes two seconds to import, so only those who train pay for it.
    from lightning_fabric import Fabric

    here, machines = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    # A transformer may have weights, such as a pooler's, that the embedding does not use.
    strategy = "auto" if here * machines == 1 else "ddp_find_unused_parameters_true"
    fabric = Fabric(
        accelerator=accelerator(device), strategy=strategy, devices=here, num_nodes=machines, precision=precision
    )
    fabric.launch()
    return fabric


def accelerator(device: str) -> str:
    """`cpu` or `cuda`, from those names or `auto`.

    Raises:
        ValueError: another name, or `cuda` where PyTorch sees none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("device 'cuda' was asked for, but PyTorch sees no CUDA GPU here; use 'cpu' or 'auto'")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; choose auto, cpu or cuda")
    return "cuda" if device == "cuda" or (device == "auto" and available) else "cpu"
