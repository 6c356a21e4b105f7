"""The devices that a worker uses, with one process each."""

from importlib.metadata import PackageNotFoundError, version

from qsit.errors import UsageError


def find_devices(wanted: str) -> list[str]:
    """
    Return the devices to use: those named, or every GPU, or the CPU. "cuda" alone means the first GPU.

    Raises UsageError when torch is not installed, or does not find a GPU that is named.
    """
    if wanted == "cpu":
        return ["cpu"]
    found = [f"cuda:{index}" for index in range(_count_gpus())]
    if wanted == "auto":
        return found or ["cpu"]
    if wanted == "cuda" and found:
        return found[:1]
    named = wanted.split(",")
    if not found or not set(named) <= set(found):
        raise UsageError(f"--device {wanted}: found {', '.join(found) or 'no GPU'}; use --device auto or cpu")
    return named


def _count_gpus() -> int:
    try:
        if version("torch").endswith("+cpu"):  # then the parent need not import it
            return 0
    except PackageNotFoundError as error:
        raise UsageError("a worker needs torch: pip install 'qsit[worker]'") from error
    import torch

    return torch.cuda.device_count()
