"""The devices on which a worker runs, one process each."""

from importlib.metadata import PackageNotFoundError, version

from qsit.errors import UsageError


def find_devices(wanted: str) -> list[str]:
    """
    The devices to use, one process each: those named, or every GPU, or the CPU.

    Raises:
        UsageError: when a GPU is named that is not there.
    """
    if wanted == "cpu":
        return ["cpu"]
    found = [f"cuda:{index}" for index in range(_gpus())]
    if wanted == "auto":
        return found or ["cpu"]
    if wanted == "cuda" and found:
        return found[:1]
    named = wanted.split(",")
    if not found or not set(named) <= set(found):
        raise UsageError(f"--device {wanted}: found {', '.join(found) or 'no GPU'}; use --device auto or cpu")
    return named


def _gpus() -> int:
    try:
        if version("torch").endswith("+cpu"):  # which spares the parent importing it
            return 0
    except PackageNotFoundError as error:
        raise UsageError("a worker needs torch: pip install 'qsit[worker]'") from error
    import torch

    return torch.cuda.device_count()
