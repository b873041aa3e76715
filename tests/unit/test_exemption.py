"""The one exec that a filter does not ask about: whatever else it decides, it decides as without."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.sandbox.compile.seccomp import build_filter
from remit.sandbox.kernel.call import MACHINE, NR
from remit.sandbox.kernel.exemption import Exemption
from remit.sandbox.kernel.numbers import AUDIT_ARCH
from tests.plan import bpfsim

EXECVE, OWN = NR["execve"], AUDIT_ARCH[MACHINE]
EXEMPTION = Exemption()
WORDS = tuple([word & 0xFFFFFFFFFFFFFFFF for word in EXEMPTION.words])


@cache
def program() -> bytes:
    return build_filter((), notify=True, brokered_reads=False, metadata=False, machine=MACHINE)


def alone(arch: int, number: int, arguments: tuple[int, ...]) -> int:
    return bpfsim.run(program(), arch, number, arguments)


def behind(arch: int, number: int, arguments: tuple[int, ...]) -> int:
    return bpfsim.run(EXEMPTION.program + program(), arch, number, arguments)


def test_the_words_are_let_go_on_and_others_are_asked_about() -> None:
    own = (1, 2, 3, *WORDS)
    assert (alone(OWN, EXECVE, own), behind(OWN, EXECVE, own)) == (bpfsim.NOTIFY, bpfsim.ALLOW)
    assert len({Exemption().words for _ in range(50)}) == 50


@pytest.mark.parametrize("bit", range(3 * 64))
def test_one_bit_of_them_is_enough(bit: int) -> None:
    words = [word ^ (1 << bit % 64 if index == bit // 64 else 0) for index, word in enumerate(WORDS)]
    assert behind(OWN, EXECVE, (1, 2, 3, *words)) == bpfsim.NOTIFY


@given(
    st.sampled_from([OWN, bpfsim.I386, *AUDIT_ARCH.values()]),
    st.one_of(
        st.sampled_from([EXECVE, NR["execveat"], EXECVE | bpfsim.X32_BIT]),
        st.integers(0, 500),
        st.integers(0, 2**32 - 1),
    ),
    st.tuples(*[st.integers(0, 2**64 - 1)] * 3),
    st.one_of(st.just(WORDS), st.tuples(*[st.one_of(st.integers(0, 2**64 - 1), st.sampled_from(WORDS))] * 3)),
)
def test_all_else_is_decided_as_without(arch: int, number: int, first: tuple[int, ...], last: tuple[int, ...]) -> None:
    arguments = (*first, *last)
    exempt = (arch, number, last) == (OWN, EXECVE, WORDS)
    assert behind(arch, number, arguments) == (bpfsim.ALLOW if exempt else alone(arch, number, arguments))
