"""One ``execve(2)`` that a filter lets go on although its listener wants to hear of every one: a call's own command.

The call has three arguments and a filter sees six registers. Whoever knows what the other three have to hold is not asked
about. That is known in the process that makes the filter, and to nobody behind it: the kernel clears the registers as it
executes the program, and shows a filter to no one without CAP_SYS_ADMIN (``ptrace(2)`` PTRACE_SECCOMP_GET_FILTER). Known,
it would let a program execute unrecorded what it may execute anyway: what may be executed, the filter does not decide.
"""

from __future__ import annotations

import posix
from _struct import Struct

from remit.sandbox.kernel.call import MACHINE, NR
from remit.sandbox.kernel.numbers import AUDIT_ARCH

_INSTRUCTION = Struct("=HBBI")
"""``struct sock_filter`` (``linux/filter.h``)."""
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW = 0x7FFF0000
_NUMBER, _ARCHITECTURE, _FOURTH = 0, 4, 16 + 3 * 8
"""Where ``struct seccomp_data`` has them (``seccomp(2)``)."""
_WORDS = Struct("=3q")
_HALVES = Struct("=6I")


class Exemption:
    """``words``: the call's fourth to sixth argument, random. ``program``: stands before a filter's."""

    __slots__ = ("program", "words")

    def __init__(self) -> None:
        secret = posix.urandom(_WORDS.size)
        self.words: tuple[int, int, int] = _WORDS.unpack(secret)
        self.program = _program(_HALVES.unpack(secret))


def _program(halves: tuple[int, ...]) -> bytes:
    wanted = [(_ARCHITECTURE, AUDIT_ARCH[MACHINE]), (_NUMBER, NR["execve"])]
    wanted += [(_FOURTH + 4 * index, half) for index, half in enumerate(halves)]
    program = b""
    for index, (offset, value) in enumerate(wanted):
        # A jump counts from the next instruction: past the comparisons that are left, and what they lead to.
        past = 2 * (len(wanted) - index - 1) + 1
        program += _INSTRUCTION.pack(_LOAD, 0, 0, offset) + _INSTRUCTION.pack(_EQUAL, 0, past, value)
    return program + _INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW)
