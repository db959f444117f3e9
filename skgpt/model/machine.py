"""What an estimator has to work with here: versions, device, threads, memory, optional packages."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from joblib.externals import loky

from skgpt import __version__
from skgpt.model.device import has_fast_bf16, resolve_device, total_memory

_REQUIRED = ("torch", "transformers", "tokenizers", "scikit-learn", "numpy")
# What is asked for where something is used: the package, and what it is for.
_OPTIONAL = {
    "peft": "lora=LoRA()",
    "bitsandbytes": "LoRA(quantize_base=4)",
    "optuna": "skgpt.tuning",
    "matplotlib": "skgpt.plots",
    "pandas": "explain, tables of errors",
    "fastapi": "examples/serve",
}


def versions() -> dict[str, str]:
    """Return the versions of skgpt, Python and what both stand on."""
    found = {
        "skgpt": __version__,
        "Python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
    }
    return found | {package: _version_of(package) or "not installed" for package in _REQUIRED}


def optional_packages() -> dict[str, str]:
    """Return, for each optional package, its version or what is missing without it."""
    return {
        package: found if (found := _version_of(package)) else f"not installed; for {use}"
        for package, use in _OPTIONAL.items()
    }


def hardware() -> dict[str, str]:
    """Return what ``device="auto"`` and ``precision="auto"`` come to on this machine."""
    device = resolve_device("auto")
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    fast = has_fast_bf16(device)
    cores = loky.cpu_count()
    return {
        "device": f"{device}{name}",
        "memory": f"{total_memory(device) / 2**30:.1f} GiB",
        "precision": "bf16, in hardware" if fast else "fp32, as bf16 is not fast here",
        "cores": str(cores),
        "threads": str(min(cores, torch.get_num_threads())),  # what a fit and predict run on
    }


def _version_of(package: str) -> str | None:
    """Return the version that is installed, without importing anything."""
    if package == "torch":
        return str(torch.__version__)  # says of which build it is, where the metadata may not
    try:
        return version(package)
    except PackageNotFoundError:
        return None
