"""Freed memory goes back to the system."""

import platform
import subprocess
import sys

import pytest

from skgpt.device import trim_malloc

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
def test_give_memory_back__freed_in_the_middle_of_the_heap__is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)

    kept, left = map(float, done.stdout.split())
    assert kept > 200  # MiB; or the test would show nothing
    assert left < 100


def test_give_memory_back__anywhere__says_whether_it_could() -> None:
    assert trim_malloc() == (platform.libc_ver()[0] == "glibc")
