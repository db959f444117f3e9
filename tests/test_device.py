"""What "auto" comes to on CPUs of several kinds."""

import pytest
import torch

from skgpt.device import has_fast_bf16, resolve_precision

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
