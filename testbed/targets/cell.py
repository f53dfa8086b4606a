"""Runs another mail server apart from the machine: own view of files, own processes, own name.

Run by `testbed.targets.apart`, as root and as a file of its own (it imports nothing of ours, so that nothing has to be
found): it reads a plan from its first argument and becomes the first process of a new process namespace. There it

1. lays the server's tree over ``/usr`` and the cell's ``etc`` over ``/etc`` (overlay, read only), and puts the cell's ``var``
   ``run`` and ``tmp`` in the place of those of the machine, the rest of which can't be written, all in a mount namespace that nobody else sees;
2. starts the server and says so on standard output, a JSON line an event;
3. runs commands that it is asked for on standard input, among the same files;
4. ends the server when it is told to, or when its standard input ends because the bench is gone.

When it ends, the kernel ends every process in it: nothing can be left. It is the parent of orphans, so the time
that they took is known here.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_NEWNS, _NEWUTS, _NEWIPC, _NEWPID = 0x00020000, 0x04000000, 0x08000000, 0x20000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND = 1, 2, 4, 8, 32, 4096
_REC, _PRIVATE = 16384, 1 << 18
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), data.encode()), f"mount on {target}")


def _say(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _set_apart(plan: dict[str, Any]) -> None:
    """Make the file system that the server sees. Paths are relative, because what they name is about to be covered."""
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    if plan["tree"]:
        os.chdir(plan["tree"])
        _mount("overlay", "/usr", "overlay", _RDONLY | _NODEV, "lowerdir=usr:/usr")
    os.chdir(plan["directory"])
    _mount("overlay", "/etc", "overlay", _RDONLY | _NODEV, "lowerdir=etc:/etc")
    _mount("var", "/var", None, _BIND)
    _mount("run", "/run", None, _BIND)
    _mount("tmp", "/tmp", None, _BIND)  # noqa: S108 - what is put there is a directory of ours
    # Whatever a server believes it may write, it is not the machine's.
    _mount(None, "/", None, _REMOUNT | _BIND | _RDONLY)
    if plan["hostname"]:
        name = plan["hostname"].encode()
        _check(_libc.sethostname(name, len(name)), "sethostname")


class _Init:
    def __init__(self, plan: dict[str, Any], log: int) -> None:
        self._plan = plan
        self._log = log
        self._tools_s = 0.0
        self._server = 0
        self._status: int | None = None
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def run(self) -> int:
        """Start the server and do as told until standard input ends; return the exit status."""
        server = subprocess.Popen(
            self._plan["command"], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            cwd="/", env=self._plan["environment"], start_new_session=True,
        )  # fmt: skip
        self._server = server.pid
        _say(event="started", pid=server.pid)
        rest = b""
        while True:
            readable, _, _ = select.select([0, self._reader], [], [])
            if self._reader in readable:
                os.read(self._reader, 4096)
            self._reap()
            if 0 not in readable:
                continue
            chunk = os.read(0, 65536)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._answer(json.loads(line))
        self._end()
        return 0

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == self._server:
                    self._status = os.waitstatus_to_exitcode(found[1])
                    _say(event="ended", status=self._status)

    def _answer(self, request: dict[str, Any]) -> None:
        if request["do"] == "stop":
            self._end(request["grace_s"])
            _say(
                event="stopped",
                status=self._status,
                reaped_s=self._reaped_s(),
                tools_s=self._tools_s,
            )
            return
        before = _children_s()
        try:
            done = subprocess.run(
                request["command"], stdin=subprocess.DEVNULL, capture_output=True, cwd="/", check=False,
                env=self._plan["environment"], timeout=request["timeout_s"], group=request["group"],
            )  # fmt: skip
            status, out, err = done.returncode, done.stdout, done.stderr
        except subprocess.TimeoutExpired:
            status, out, err = 124, b"", b"not done in time"
        except OSError as error:
            status, out, err = 127, b"", str(error.strerror).encode()
        self._tools_s += _children_s() - before
        _say(
            event="ran", id=request["id"], status=status, out=out.decode("utf-8", "replace"),
            err=err.decode("utf-8", "replace"), reaped_s=self._reaped_s(), tools_s=self._tools_s,
        )  # fmt: skip

    def _reaped_s(self) -> float:
        """Return the seconds that ended processes took, without the commands that were asked for."""
        return max(0.0, _children_s() - self._tools_s)

    def _end(self, grace_s: float = 5.0) -> None:
        deadline = time.monotonic() + grace_s
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._server, signal.SIGTERM)
        while self._status is None and time.monotonic() < deadline:
            select.select([self._reader], [], [], 0.1)
            with contextlib.suppress(ChildProcessError):
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    if found[0] == self._server:
                        self._status = os.waitstatus_to_exitcode(found[1])
        # Everybody else in this namespace; we are the only one whom this does not reach.
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, 0)
                if pid == self._server and self._status is None:
                    self._status = os.waitstatus_to_exitcode(status)


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Become a cell; return the exit status."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if plan["account"]:
        (Path(plan["account"]) / "cgroup.procs").write_text("0\n", encoding="ascii")
    log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _check(_libc.unshare(_NEWNS | _NEWUTS | _NEWIPC | _NEWPID), "unshare")
    except OSError as error:
        _say(
            event="error",
            problem=f"this machine sets nothing apart: {error.filename}: {error.strerror}",
        )
        return 1
    first = os.fork()
    if first:
        # The bench talks to the other one.
        os.close(0)
        os.close(1)
        signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGKILL))
        return os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        _set_apart(plan)
        return _Init(plan, log).run()
    except OSError as error:
        _say(event="error", problem=f"can't be set apart: {error.filename}: {error.strerror}")
        return 1


if __name__ == "__main__":
    # Without waiting for threads, buffers or modules: there are none.
    os._exit(main() & 0xFF)
