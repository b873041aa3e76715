"""The kernel tests' world."""

from tests.kernel.conftest import remit_command, world

__all__ = ["remit_command", "world"]
