"""What a process keeps of the memory it has freed."""

import ctypes
import sys

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's malloc.h
LARGE = 1 << 16  # bytes


def return_large_blocks() -> bool:
    """Let the C library give large blocks back to the system as soon as they are freed; gives whether it does.

    glibc maps a large block by itself, so that it can be given back alone. But each such block that is freed, up to
    32 MB, becomes the size below which blocks lie together on the heap from then on (mallopt(3)). A tower that is
    read, used and dropped then leaves holes that the U-Net's weights do not fit. Threads share one heap, too, where
    each would keep the free blocks of its own. Small models are quicker without this call, since a mapped block is
    cleared anew each time.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_ARENA_MAX, 1))
