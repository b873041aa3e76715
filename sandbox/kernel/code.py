"""Machine code in this process: bytes that can be called.

No page is ever writable and executable at once. Where memory may not be executed (SELinux's ``execmem``, systemd's
``MemoryDenyWriteExecute``) there is none, and whoever has machine code has another way too.
"""

from __future__ import annotations

from remit.sandbox.kernel.call import NR, call, function, libc_call, long, prepared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE_ANONYMOUS = 0x22
_PAGE = 4096


def executable(code: bytes) -> Callable[[object, object, object, object], int] | None:
    """``code`` as a function of four longs (``call.long``), which gives the interpreter lock up meanwhile; None without
    code, or where this process may not execute it. It stays for as long as the process does."""
    if not code:
        return None
    size = (len(code) + _PAGE - 1) & -_PAGE
    try:
        page = prepared(NR["mmap"], None, size, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE_ANONYMOUS, -1, long(0))
        libc_call("memcpy", page, code, len(code))
        call(NR["mprotect"], page, size, _PROT_READ | _PROT_EXEC)
    except OSError:
        return None
    return function(page)
