"""Postfix's smtp-sink, and how many messages it has taken."""

import re
import subprocess
import threading
import time


class SmtpSink:
    """`smtp-sink -c`: takes everything, and prints a running count that we read."""

    def __init__(self, address: str, port: int) -> None:
        self.process = subprocess.Popen(
            ["/usr/sbin/smtp-sink", "-c", "-u", "nobody", f"{address}:{port}", "1000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.messages = 0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        time.sleep(0.3)
        assert self.process.poll() is None, "smtp-sink did not start"

    def _read(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        while chunk := self.process.stdout.read1(65536):
            found = re.findall(rb"mesg=(\d+)(?=\r)", rest + chunk)
            rest = (rest + chunk)[-64:]
            if found:
                self.messages = int(found[-1])

    def wait_for(self, messages: int, timeout_s: float) -> None:
        """Wait until it has taken so many messages in all."""
        deadline = time.monotonic() + timeout_s
        while self.messages < messages:
            assert time.monotonic() < deadline, f"{self.messages} of {messages} messages arrived"
            assert self.process.poll() is None, "smtp-sink ended"
            time.sleep(0.002)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> "SmtpSink":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
