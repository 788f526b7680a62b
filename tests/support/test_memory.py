"""Freed memory goes back to the system. In processes of their own, whose allocator is set for good."""

import platform
import subprocess
import sys

import pytest

KEPT = """
import sys
from pathlib import Path
import torch
from escdiff.support.memory import return_large_blocks

def resident():
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096 / 1e6

assert sys.argv[1] == "as it is" or return_large_blocks()
del_me = torch.zeros(30 * 2**18)  # freed, it makes glibc put blocks of up to 30 MB on the heap
del del_me
before = resident()
blocks = [(torch.zeros(2**18), torch.zeros(16)) for _ in range(100)]  # a small one behind each
small = [pin for _, pin in blocks]
del blocks
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_blocks_go_back():
    as_it_is, returned = (
        float(subprocess.run([sys.executable, "-c", KEPT, how], capture_output=True, text=True, check=True).stdout)
        for how in ("as it is", "returned")
    )
    assert as_it_is > 80 and returned < 20  # of 100 MB
