"""An interpreter of classic BPF over ``struct seccomp_data``: what the kernel would answer, without asking it.

It shares no code with the compiler. Only what seccomp allows is implemented (``seccomp_check_filter`` in
kernel/seccomp.c); anything else is an error.
"""

from __future__ import annotations

import struct

X86_64, AARCH64, I386, X32_BIT = 0xC000003E, 0xC00000B7, 0x40000003, 0x40000000
ALLOW, ERRNO, NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000


def run(program: bytes, arch: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """The action word that ``program`` returns for one system call."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    words = [argument & 0xFFFFFFFFFFFFFFFF for argument in padded]
    data = struct.pack("=iIQ6Q", number - (1 << 32) if number >> 31 else number, arch, 0, *words)
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = index = position = 0
    scratch = [0] * 16
    while True:
        op, when_true, when_false, k = code[position]
        position += 1
        if op == 0x20:  # ld [k]
            if k % 4 or k + 4 > len(data):
                raise ValueError(f"load outside the data: {k}")
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif op == 0x00:
            accumulator = k
        elif op == 0x01:
            index = k
        elif op == 0x07:  # tax
            index = accumulator
        elif op == 0x87:  # txa
            accumulator = index
        elif op == 0x02:
            scratch[k] = accumulator
        elif op == 0x60:
            accumulator = scratch[k]
        elif op == 0x54:
            accumulator &= k
        elif op == 0x44:
            accumulator |= k
        elif op == 0x05:
            position += k
        elif op in (0x15, 0x25, 0x35, 0x45):
            holds = {
                0x15: accumulator == k,
                0x25: accumulator > k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }[op]
            position += when_true if holds else when_false
        elif op == 0x06:
            return int(k)
        else:
            raise ValueError(f"unknown instruction {op:#x} at {position - 1}")


def name(action: int) -> str:
    """``allow``, ``notify`` or ``errno N``."""
    if action == ALLOW:
        return "allow"
    if action == NOTIFY:
        return "notify"
    if action & 0xFFFF0000 == ERRNO:
        return f"errno {action & 0xFFFF}"
    return f"action {action:#x}"
