"""Where and how to compute: device, precision, memory, threads, and what is installed for it."""

import ctypes
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from joblib.externals import loky
from numpy.typing import NDArray
from torch import Tensor

from skgpt import __version__
from skgpt.caching import repair_in_forks
from skgpt.exceptions import InvalidArgumentError, ModelNotSupportedError, NoMemoryError

Precision = Literal["auto", "bf16", "fp16", "fp32"]

# The CUDA device that "auto" and "cuda" mean; the first one for None.
_CUDA_INDEX: ContextVar[int | None] = ContextVar("skgpt_cuda_index", default=None)
_CPU = torch.device("cpu")
_AUTOCAST = ("cpu", "cuda", "mps")  # the kinds of device that there are for a fit
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
# In the errors of cuBLAS's workspace, pinned memory, Apple's GPUs and the CPU's allocator.
_OUT_OF_MEMORY = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "MPS backend out of memory",
    "DefaultCPUAllocator",
)


def resolve_device(device: str) -> torch.device:
    """Turn the `device` parameter into a torch device that is there, or raise.

    "auto" is a CUDA device, else the CPU. CUDA without a number is the first device, or the one of
    `on_cuda_device`.
    """
    if device.startswith(("auto", "cuda")):
        check_not_forked("cuda")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'. Got {device!r}."
        ) from error
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = (_CUDA_INDEX.get() or 0) if wanted.index is None else wanted.index
        if index >= count:
            raise InvalidArgumentError(
                f"`device={device!r}` needs CUDA device {index}. {_cuda_here(count)} Or use "
                "device='auto', which is a GPU where there is one and the CPU elsewhere."
            )
        return torch.device("cuda", index)
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise InvalidArgumentError(
            "`device='mps'` needs an Apple GPU; none is visible here. Use device='auto'."
        )
    if wanted.type not in ("cpu", "mps"):
        raise InvalidArgumentError(
            f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'. Got {device!r}."
        )
    return wanted


def check_not_forked(device_type: str) -> None:
    """Raise for CUDA in a process that was forked from one that had used it: CUDA can't go on."""
    if device_type == "cuda" and torch.cuda._is_in_bad_fork():
        raise ModelNotSupportedError(
            "A process on CUDA must not be forked from one that has used it. This one was: load or "
            "fit the model after the fork, start processes by 'spawn' or 'forkserver', or "
            "set device='cpu'."
        )


def _cuda_here(count: int) -> str:
    """Say what there is of CUDA, and what to do for more."""
    if count:
        return f"{count} are visible, from number 0 on: name one of them."
    if not torch.backends.cuda.is_built():
        return (
            f"This torch, {torch.__version__}, is a CPU build and knows of no GPU: install one "
            "that is built for CUDA."
        )
    return "None is visible: check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES."


@contextmanager
def on_cuda_device(index: int) -> Iterator[None]:
    """Have "auto" and "cuda" mean the CUDA device of this number in the body.

    So a search can place estimators, even nested ones, without changing their parameters.
    """
    token = _CUDA_INDEX.set(index)
    try:
        yield
    finally:
        _CUDA_INDEX.reset(token)


def placed_on() -> int | None:
    """Return the number that `on_cuda_device` was given by a caller; None outside of it."""
    return _CUDA_INDEX.get()


def cuda_devices() -> list[str]:
    """Return the unique id of each visible CUDA device, in order of their numbers."""
    if not torch.cuda.is_available():
        return []
    n_devices = torch.cuda.device_count()
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(n_devices)]


def has_fast_bf16(device: torch.device) -> bool:
    """Say whether matrix products are faster in bf16 than in fp32 on this device."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # There is no public function: torch itself asks these before it uses the kernels.
        if torch.cpu._is_amx_tile_supported():
            return True
        return bool(torch.cpu._is_avx512_bf16_supported()) and not _has_slow_avx512_bf16()
    return False


def _has_slow_avx512_bf16() -> bool:
    """Say whether bf16 without matrix units is slower than fp32 on this CPU.

    It runs at half the rate of fp32 on Intel's cores since Sapphire Rapids where a virtual machine
    hides AMX. AVX-512 FP16 tells those from Intel's older cores, which are fast, as AMD's are.
    """
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)  # torch 2.11 may not have it
    cpu: Mapping[str, object] = {} if get_capabilities is None else get_capabilities()
    return bool(cpu.get("avx512_fp16")) and "AMD" not in str(cpu.get("cpu_name"))


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Turn the `precision` parameter into the dtype that the trunk computes in.

    "auto" is bf16 where the hardware is fast at it, else fp32; fp16 needs CUDA.
    """
    if precision == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    if precision == "fp16" and device.type != "cuda":
        raise ModelNotSupportedError(
            f"precision='fp16' needs a CUDA device. Got {device}: use 'auto', 'bf16' or 'fp32'."
        )
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def total_memory(device: torch.device) -> int:
    """Return the device's memory in bytes: all of it, not what happens to be free."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = int(psutil.virtual_memory().total)
    try:  # a container's limit, where there is one
        return min(total, int(_CGROUP_LIMIT.read_text("ascii")))
    except (OSError, ValueError):  # no such file, or "max"
        return total


def free_memory(device: torch.device) -> int:
    """Return how many bytes this process could take of the device's memory just now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch's allocator has reserved and not used is as good as free.
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + reserved
    # psutil doesn't know a container's limit.
    taken = int(psutil.Process().memory_info().rss)
    return max(0, min(int(psutil.virtual_memory().available), total_memory(device) - taken))


def prefix_budget(device: torch.device) -> int:
    """Return how many bytes the hidden states behind frozen layers may take during a fit."""
    return total_memory(device) // 4


def trim_malloc() -> bool:
    """Have glibc give freed memory back to the system; False where the C library is another.

    Each thread that allocates has a heap of its own, which keeps what is freed: after the folds of
    a few trials a search would hold half as much again as it uses.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    trim(0)
    return True


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy an array to a GPU, without waiting for it; on a CPU, share its memory."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextmanager
def own_settings() -> Iterator[None]:
    """Have the body compute by skgpt's settings, whatever the caller has set.

    Every public method that computes goes through this door, so that no code behind it need ask.
    Of the caller's settings the number of threads alone counts, up to that of the cores.
    """
    with ExitStack() as stack:
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device() != _CPU:  # it would slow every call of torch down
            stack.enter_context(_CPU)
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        stack.enter_context(_PROCESS_WIDE.own_settings())
        stack.enter_context(_no_more_threads_than_cores())
        yield


class _ProcessWide:
    """Settings of torch that all threads share.

    The first of the calls under way sets those that differ; the last puts the caller's back.
    """

    # How to read each, how to set it, and skgpt's value. The precision of fp32 products is asked of
    # each backend: torch.get_float32_matmul_precision raises where a user has set one of these.
    _SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any], Any], ...] = (
        (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 0),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False),
        *(
            (partial(getattr, of, "fp32_precision"), partial(setattr, of, "fp32_precision"), "ieee")
            for of in (
                torch.backends.cuda.matmul,
                torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
            )
        ),
    )

    def __init__(self) -> None:
        self.was_used = False
        self._lock = threading.Lock()
        self._inside: list[int] = []  # the thread of each call
        self._before: list[tuple[Callable[[Any], Any], Any]] = []

    @contextmanager
    def own_settings(self) -> Iterator[None]:
        thread = threading.get_ident()
        self.was_used = True
        with self._lock:
            if not self._inside:
                self._set()
            self._inside.append(thread)
        try:
            yield
        finally:
            with self._lock:
                self._inside.remove(thread)
                if not self._inside:
                    self._put_back()

    def after_fork(self) -> None:
        """Go on in a forked process, where the calls of other threads have ended."""
        self._lock = threading.Lock()
        self._inside = [thread for thread in self._inside if thread == threading.get_ident()]
        if not self._inside:
            self._put_back()

    def _set(self) -> None:
        for read, write, own in self._SETTINGS:
            if (value := read()) not in (own, "none"):  # "none" means "ieee"
                self._before.append((write, value))
                write(own)

    def _put_back(self) -> None:
        while self._before:
            write, value = self._before.pop()
            write(value)


_PROCESS_WIDE = _ProcessWide()


def _after_fork() -> None:
    """Leave torch one thread in a forked process if it may have had several before.

    GNU's OpenMP would wait for ever for those of the parent.
    """
    global _STARTING
    _STARTING = threading.Lock()
    _PROCESS_WIDE.after_fork()
    if _PROCESS_WIDE.was_used:
        torch.set_num_threads(1)


repair_in_forks(_after_fork)


@contextmanager
def _no_more_threads_than_cores() -> Iterator[None]:
    """Have torch use no more threads than this process has cores while the body runs.

    torch counts the machine's cores: in a container with two of 64 it would run 64 threads that
    wait for each other. loky, joblib's backend, knows such limits. In joblib's workers torch has
    its share of the cores already.
    """
    with _STARTING:
        before = torch.get_num_threads()
    cores = loky.cpu_count()  # joblib.cpu_count() is 1 where multiprocessing is switched off
    if before <= cores:
        yield
        return
    torch.set_num_threads(cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_STARTING = threading.Lock()


@contextmanager
def starting_threads() -> Iterator[None]:
    """Let the body start threads that set their own number of compute threads.

    torch gives a new thread the number that any thread set last: here the caller's, once the body
    is over. A thread whose first use of torch is a call of skgpt's waits until then.
    """
    with _STARTING:
        before = torch.get_num_threads()
        try:
            yield
        finally:
            torch.set_num_threads(before)


def ran_out(error: Exception) -> bool:
    """Say whether an error means that memory ran out: not all of them are OutOfMemoryError."""
    if isinstance(error, NoMemoryError):  # no smaller part helps
        return False
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in said for words in _OUT_OF_MEMORY
    )


# --- What is installed, for `python -m skgpt info` --------------------------------------------

_REQUIRED = ("torch", "transformers", "tokenizers", "scikit-learn", "numpy")
# Imported only where they are used: the package, and what it is for.
_OPTIONAL = {
    "peft": "lora=LoRA()",
    "bitsandbytes": "LoRA(quantize_base=4)",
    "optuna": "skgpt.tuning",
    "matplotlib": "skgpt.plots",
    "pandas": "explain, tables of errors",
    "fastapi": "examples/serve",
}


def versions() -> dict[str, str]:
    """Return the versions of skgpt, Python and the required packages."""
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
