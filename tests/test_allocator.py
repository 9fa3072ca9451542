"""Memory that is kept is not asked for again."""

import platform
import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from esper.allocator import keep_freed_memory
assert keep_freed_memory()
def work():
    held = [torch.ones(1000, 300) for _ in range(40)]
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    pages = 10 * 40 * 1000 * 300 * 4 // resource.getpagesize()
    assert int(run.stdout) < pages / 20
