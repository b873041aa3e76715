"""The standard streams of a call: what they may be, and which descriptors that comes to."""

from __future__ import annotations

import codecs
import fcntl
import os
import stat
import subprocess
from errno import EBADF, EMFILE, ENFILE
from typing import IO, Any

from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.launch.stdio import is_place

PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
CHUNK = 1 << 16
"""Bytes of a stream that are read or written at once."""
_STDIN_COPY = 64 << 20
_NAMES = ("stdin", "stdout", "stderr")
Stream = int | IO[Any] | None
Decode = tuple[str, str] | None
"""Encoding and what is done about errors; None for bytes."""


def not_started(error: OSError) -> Exception:
    """What ``error`` is where a call is being prepared: a full descriptor table is the caller's to mend."""
    if error.errno not in (EMFILE, ENFILE):
        return error
    return LaunchError(
        "this process can open no more descriptors: nothing was started", hint="close some, or raise 'ulimit -n'"
    )


class Streams:
    """The three standard descriptors of a call: theirs to send, ours to keep."""

    def __init__(self, stdin: Stream, stdout: Stream, stderr: Stream, *, pty: bool) -> None:
        self.theirs: list[int] = []
        self.ours = [-1, -1, -1]
        self._opened: list[int] = []
        self._nothing = -1
        if pty:
            return
        try:
            self.theirs.append(self._input(stdin))
            self.theirs.append(self._output(1, stdout))
            self.theirs.append(self.theirs[1] if stderr == STDOUT else self._output(2, stderr))
        except OSError as error:
            self.close()
            self.close_theirs()
            raise not_started(error) from None
        except BaseException:
            self.close()
            self.close_theirs()
            raise

    def _input(self, wanted: Stream) -> int:
        if wanted == PIPE:
            read, self.ours[0] = os.pipe2(os.O_CLOEXEC)
            return self._own(read)
        if wanted is None or wanted == DEVNULL:
            return self._null()
        descriptor = _open(wanted, _NAMES[0])
        copied = copy_of_regular(descriptor)
        return descriptor if copied < 0 else self._own(copied)

    def _output(self, which: int, wanted: Stream) -> int:
        if wanted == PIPE:
            self.ours[which], write = os.pipe2(os.O_CLOEXEC)
            return self._own(write)
        if wanted == DEVNULL:
            return self._null()
        return _open(which if wanted is None else wanted, _NAMES[which])

    def _null(self) -> int:
        """``/dev/null``, opened once for all three, as ``subprocess`` has it."""
        if self._nothing < 0:
            self._nothing = self._own(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        return self._nothing

    def _own(self, descriptor: int) -> int:
        self._opened.append(descriptor)
        return descriptor

    def close_theirs(self) -> None:
        for descriptor in self._opened:
            os.close(descriptor)
        self._opened.clear()

    def take(self, index: int) -> int:
        """Our end of a pipe, which is the caller's to close now; -1 where there is none."""
        descriptor, self.ours[index] = self.ours[index], -1
        return descriptor

    def close_one(self, index: int) -> None:
        descriptor = self.take(index)
        if descriptor >= 0:
            os.close(descriptor)

    def close(self) -> None:
        if self.ours != [-1, -1, -1]:
            for index in range(3):
                self.close_one(index)


def refuse_place(descriptor: int, name: str) -> None:
    """Raise LaunchError for a stream that nothing can be read from or written to, but the host's files be reached through.

    What runs the call refuses it too (``launch.ground``). Raises OSError: there is no such descriptor.
    """
    place = is_place(descriptor)
    if place:
        raise LaunchError(
            f"{name} is a {place}, which the command could reach the host's files through",
            where=f"descriptor {descriptor}",
            hint="give it a file or a pipe, or DEVNULL",
        )


def _open(wanted: Any, name: str) -> int:
    """The descriptor that ``wanted`` is, and which is open: one that is not would come to light when it is sent, and there the
    request's own end is no different. Raises OSError, LaunchError; TypeError and ValueError, as ``subprocess`` has them.
    """
    if wanted == STDOUT:
        raise ValueError(f"{name}=STDOUT: only stderr can be what stdout is")
    if not isinstance(wanted, int) and not hasattr(wanted, "fileno"):
        raise TypeError(f"{name} is PIPE, STDOUT, DEVNULL, a descriptor or a file, not {wanted!r}")
    descriptor: int = wanted if isinstance(wanted, int) else wanted.fileno()
    try:
        refuse_place(descriptor, name)
    except (OSError, OverflowError):
        raise OSError(EBADF, f"{name}: descriptor {descriptor} is not open") from None
    return descriptor


def copy_of_regular(descriptor: int, hint: str = "pass it through a pipe (stdin=PIPE)") -> int:
    """What is left to read of a regular file, in memory and sealed; -1 for anything else.

    A regular file's descriptor is a door: ``/proc/self/fd/0`` opens it again, for writing too. Its offset stays where it is, as
    for ``remit run``: whoever has the file open, such as a shell's ``while read``, goes on where it was.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return -1
    copy = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    begin = os.lseek(descriptor, 0, os.SEEK_CUR)
    size = 0
    while data := os.pread(descriptor, CHUNK, begin + size):
        size += len(data)
        if size > _STDIN_COPY:
            os.close(copy)
            raise LaunchError(f"stdin is a file of more than {_STDIN_COPY >> 20} MiB", hint=hint)
        os.write(copy, data)
    os.lseek(copy, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    return copy


def decoder(text: bool | None, encoding: str | None, errors: str | None) -> Decode:
    """(encoding, errors) where a result is text (``subprocess``'s rule), else None. Raises LookupError: there is no such one."""
    if not (text or encoding or errors):
        return None
    found = encoding or "utf-8", errors or "strict"
    "".encode(found[0])  # text encodings only
    codecs.lookup_error(found[1])
    return found


def encoded(given: Any, decode: Decode) -> bytes | None:
    """Input as bytes. Raises TypeError; UnicodeEncodeError."""
    if given is None or isinstance(given, bytes):
        return given
    if isinstance(given, str):
        return given.encode(*decode or ("utf-8",))
    try:
        return bytes(memoryview(given))
    except TypeError:
        raise TypeError(f"input is bytes or a string, not {type(given).__name__}") from None
