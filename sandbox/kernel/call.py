"""One way into libc and the kernel, one errno path.

``ctypes`` costs more to import than the whole sandbox takes to build (2.3 ms of an 18 ms budget), so this module builds
the two things it needs from ``_ctypes``, the C module below it: a variadic ``syscall(2)`` with a 64-bit result and errno,
and the address of a buffer. Both are CPython's private interface, the same from 3.11 to 3.13 and covered by
``tests/unit/test_kernel_call.py``; nothing else in Remit touches ``_ctypes``.
"""

from __future__ import annotations

import _ctypes
import posix

from remit.sandbox.kernel.numbers import TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MACHINE: str = posix.uname().machine
"""The kernel's name of this machine's instruction set: ``x86_64`` or ``aarch64``."""

NR: dict[str, int] = TABLE.get(MACHINE, {})
"""System call numbers of this machine by name. Empty on a machine that Remit does not know."""

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_RECURSIVE = 0x8000

_FUNCFLAG_CDECL = 0x1
_FUNCFLAG_USE_ERRNO = 0x8
_INT_MAX = 0x7FFFFFFF
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_KEPT = ((_M_TRIM_THRESHOLD, 1 << 26), (_M_TOP_PAD, 1 << 18), (_M_MMAP_THRESHOLD, 1 << 25))
_BYTES_HEADER = bytes.__basicsize__ - 1


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]  # the stub's parameter has no meaning here
    _type_ = "l"


class _Byte(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "b"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _FUNCFLAG_CDECL | _FUNCFLAG_USE_ERRNO
    _restype_ = _Long


_LIBC = _ctypes.dlopen(None, 2)  # type: ignore[arg-type]  # None: this process, as dlopen(3) has it


_syscall = _Function(_ctypes.dlsym(_LIBC, "syscall"))
_functions: dict[str, _Function] = {}
_get_errno = _ctypes.get_errno


def failure(errno: int, what: str) -> OSError:
    """The one way an errno becomes an exception."""
    return OSError(errno, posix.strerror(errno), what)


def _converted(arguments: tuple[int | bytes | None, ...]) -> list[object]:
    # Left to itself _ctypes passes an int as a C int, and the upper half of a seventh argument, which travels on the
    # stack, is then whatever was there before.
    return [_Long(a) if isinstance(a, int) else a for a in arguments]


def call(number: int, *arguments: int | bytes | None) -> int:
    """``syscall(2)``. ``bytes`` are passed by address (NUL-terminated, as CPython keeps them), None as NULL.

    Returns the result; raises OSError with the kernel's errno. Releases the interpreter lock during the call.
    """
    result: int = _syscall(number, *_converted(arguments))
    if result < 0:
        raise failure(_get_errno(), f"system call {number}")
    return result


def quick(number: int, *arguments: int | bytes | None) -> int:
    """``call`` at half its cost, for at most five arguments of which every int fits a C int.

    libffi extends an int to a whole register (x86-64 and AArch64); only what travels on the stack, or does not fit, needs
    to be made a long first.
    """
    result: int = _syscall(number, *arguments)
    if result < 0:
        raise failure(_get_errno(), f"system call {number}")
    return result


def long(value: int) -> object:
    """A C long, for ``prepared``."""
    return _Long(value)


def prepared(number: int, *arguments: object) -> int:
    """``call`` with arguments as libffi takes them: as for ``quick``, or made by ``long``; the sixth must be."""
    result: int = _syscall(number, *arguments)
    if result < 0:
        raise failure(_get_errno(), f"system call {number}")
    return result


def address(buffer: bytes) -> int:
    """The address of the first byte of ``buffer``, which must stay referenced while the address is used."""
    return id(buffer) + _BYTES_HEADER


class Buffer:
    """Writable memory of fixed size with an address that the kernel may fill."""

    __slots__ = ("_anchor", "address", "size", "view")

    def __init__(self, size: int) -> None:
        memory = bytearray(size)
        # A one-byte object laid over the first byte tells the address and keeps the memory where it is; an array type of
        # every size would have to be made first.
        self._anchor = _Byte.from_buffer(memory)
        self.address: int = _ctypes.addressof(self._anchor)
        self.size = size
        self.view = memoryview(memory)


def libc_call(name: str, *arguments: int | bytes | None) -> int:
    """Call a libc function by name; its result as a C ``long``. Raises OSError where libc has no such function."""
    function = _functions.get(name)
    if function is None:
        function = _functions[name] = _Function(_ctypes.dlsym(_LIBC, name))
    result: int = function(*_converted(arguments))
    return result


def function(address: int) -> Callable[[object, object, object, object], int]:
    """The machine code at ``address``, which must stay: takes what ``long`` makes, gives the interpreter lock up meanwhile."""
    return _Function(address)


def has_libc(name: str) -> bool:
    """Whether this libc has a function (glibc's ``_np`` functions came one by one; musl lacks some)."""
    try:
        _ctypes.dlsym(_LIBC, name)
    except OSError:
        return False
    return True


def one_heap() -> None:
    """Let every thread allocate from the same heap (``mallopt(3)``; not every libc has it)."""
    if has_libc("mallopt"):
        libc_call("mallopt", _M_ARENA_MAX, 1)


def keep_memory() -> None:
    """Let freed memory stay with this process, and all of it be one heap.

    A start takes and gives back the same pages some ten times, and the kernel asks more for each than all else about it costs.
    """
    one_heap()
    if has_libc("mallopt"):
        for option, value in _KEPT:
            libc_call("mallopt", option, value)


def check(name: str, *arguments: int | bytes | None) -> None:
    """Call a libc function that returns an errno instead of setting it (the ``posix_spawn`` family)."""
    errno = libc_call(name, *arguments) & _INT_MAX
    if errno:
        raise failure(errno, name)
