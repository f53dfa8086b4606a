"""The guards of tests/conftest.py stop what they are for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LEAKS = """
import os
held = []
def test_leak(fds):
    held.append(os.open("/dev/null", os.O_RDONLY))
"""
CLEAN = """
import os
def test_clean(fds):
    descriptor = os.open("/dev/null", os.O_RDONLY)
    assert fds()[descriptor] == "/dev/null"
    os.close(descriptor)
"""
ASYNC = """
import asyncio
async def test_loop(fds):
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
"""
OUTWARD = """
import socket
def test_outward():
    with socket.socket() as one:
        one.connect(("192.0.2.1", 25))
"""
LOOPBACK = """
import socket
def test_loopback():
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()):
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", 9))
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (LEAKS, "left open: {"),
        (CLEAN, "1 passed"),
        (ASYNC, "1 passed"),
        (OUTWARD, "tests stay on loopback"),
        (LOOPBACK, "1 passed"),
    ],
    ids=["leaks", "clean", "async", "outward", "loopback"],
)
def test_guard(tmp_path: Path, code: str, said: str):
    """A leak and a packet to elsewhere fail the test; what is closed and what stays here does not."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc/self/fd")
    for path in (ROOT / "conftest.py", ROOT / "pyproject.toml"):
        shutil.copy(path, tmp_path)
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "tests" / "test_it.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said in run.stdout, run.stdout + run.stderr
    assert (run.returncode == 0) == (said == "1 passed"), run.stdout
