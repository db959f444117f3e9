"""What "auto" comes to on CPUs of several kinds, and freed memory that goes back to the system."""

import platform
import re
import subprocess
import sys

import pytest
import torch

from skgpt.device import has_fast_bf16, resolve_device, resolve_precision, trim_malloc
from skgpt.exceptions import InvalidArgumentError, ModelNotSupportedError

CPU = torch.device("cpu")


def be_cpu(monkeypatch: pytest.MonkeyPatch, known: dict[str, object] | None) -> None:
    """Have torch find a CPU that can do this; None: a torch that can't be asked for all of it."""
    found = known or {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: found.get("amx_tile", False))
    monkeypatch.setattr(
        torch.cpu, "_is_avx512_bf16_supported", lambda: found.get("avx512_bf16", False)
    )
    if known is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)


@pytest.mark.parametrize(
    ("known", "dtype"),
    [
        # Sapphire Rapids, Intel's cores before it, AMD's cores before and after Zen 6
        (
            {"amx_tile": True, "avx512_bf16": True, "avx512_fp16": True, "cpu_name": "Intel Xeon"},
            torch.bfloat16,
        ),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC 9654"}, torch.bfloat16),
        ({"avx512_bf16": True, "avx512_fp16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        # a virtual machine that hides the first one's AMX: bf16 at half the rate of fp32
        ({"avx512_bf16": True, "avx512_fp16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"avx512_fp16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"architecture": "aarch64", "bf16": True}, torch.float32),
        (None, torch.bfloat16),
    ],
)
def test_resolve_precision__auto_on_a_cpu__bf16_where_its_products_are_faster(
    known: dict[str, object] | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_cpu(monkeypatch, known)
    assert has_fast_bf16(CPU) == (dtype is torch.bfloat16)
    assert resolve_precision("auto", CPU) is dtype
    assert resolve_precision("bf16", CPU) is torch.bfloat16  # who asks for it gets it


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_resolve_device__forked_after_cuda_was_used__says_what_to_do(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(ModelNotSupportedError, match="load or fit the model after the fork"):
        resolve_device(device)
    assert resolve_device("cpu") == CPU


SCRIPT = """
import psutil
from skgpt.device import trim_malloc

def held():
    return psutil.Process().memory_info().rss / 2**20

before = held()
pieces = [bytes([i % 256]) * 100_000 for i in range(3000)]
last = pieces[-1]  # at the end of the heap, which can't shrink for it
del pieces
kept = held() - before
trim_malloc()
print(kept, held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_trim_malloc__freed_in_the_middle_of_the_heap__is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)

    kept, left = map(float, done.stdout.split())
    assert kept > 200  # MiB; or the test would show nothing
    assert left < 100


def test_trim_malloc__anywhere__says_whether_it_could() -> None:
    assert trim_malloc() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.parametrize(
    ("is_built", "count", "said"),
    [
        (False, 0, rf"This torch, {re.escape(torch.__version__)}, is a CPU build"),
        (True, 0, "None is visible: check the driver"),
        (True, 2, "2 are visible, from number 0 on"),
    ],
)
def test_resolve_device__a_gpu_that_is_not_there__says_why_and_what_else(
    is_built: bool, count: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: is_built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(InvalidArgumentError, match=rf"needs CUDA device 7\. {said}.*'auto'"):
        resolve_device("cuda:7")


@pytest.mark.parametrize("device", ["gpu", "tpu", "", "meta", "cuda:x"])
def test_resolve_device__no_device__is_refused(device: str) -> None:
    with pytest.raises(InvalidArgumentError, match="`device` must be 'auto'"):
        resolve_device(device)
