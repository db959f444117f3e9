"""A terminal that tests can read, and what is left to see in it."""

import os
import re
from typing import TextIO

import pytest


class Terminal:
    """The two ends of a terminal of 100 columns."""

    def __init__(self) -> None:
        termios = pytest.importorskip("termios", reason="terminals are of POSIX")
        self._master, slave = os.openpty()
        termios.tcsetwinsize(slave, (24, 100))
        self.file: TextIO = os.fdopen(slave, "w", encoding="utf-8")

    def read(self) -> str:
        self.file.flush()
        os.set_blocking(self._master, False)
        parts = []
        try:
            while part := os.read(self._master, 65536):
                parts.append(part)
        except BlockingIOError:  # all of it
            pass
        return b"".join(parts).decode("utf-8")

    def close(self) -> None:
        self.file.close()
        os.close(self._master)


def lines_of(screen: str) -> list[str]:
    """Return what is left to see of what was written to a terminal."""
    lines = [""]
    for part in re.split(r"(\r\n|\r|\x1b\[A)", screen):
        if part == "\r\n":
            lines.append("")
        elif part != "\r" and part:
            assert "\x1b[A" not in part, "one line is enough for one bar"
            lines[-1] = part + lines[-1][len(part) :]
    return [line.rstrip() for line in lines if line.strip()]
