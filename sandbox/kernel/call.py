"""One way into libc and the kernel, one errno path.

``ctypes`` costs more to import than the whole sandbox takes to build (2.3 ms of an 18 ms budget), so this module builds
the two things it needs from ``_ctypes``, the C module below it: a variadic ``syscall(2)`` with a 64-bit result and errno,
and pointers to ``bytes``. Both are CPython's private interface, stable from 3.11 to 3.13 and covered by
``tests/unit/test_kernel_call.py``; nothing else in Remit touches ``_ctypes``.
"""

from __future__ import annotations

import _ctypes
import posix
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    type Argument = int | bytes | None

_LIBC = _ctypes.dlopen(None, 2)
_FUNCFLAG_CDECL = 0x1
_FUNCFLAG_USE_ERRNO = 0x8
_BYTES_HEADER = bytes.__basicsize__ - 1


class _Long(_ctypes._SimpleCData):
    _type_ = "l"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _FUNCFLAG_CDECL | _FUNCFLAG_USE_ERRNO
    _restype_ = _Long


_syscall = _Function(_ctypes.dlsym(_LIBC, "syscall"))
_get_errno = _ctypes.get_errno
_INT_MAX = 0x7FFFFFFF

MACHINE: str = posix.uname().machine
"""The kernel's name of this machine's instruction set: ``x86_64`` or ``aarch64``."""
