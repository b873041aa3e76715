"""The gateway: the one process through which anything leaves a session's network namespace.

It is exec'd isolated with an empty environment, holds the session's secrets and the key of its certificates, and is told
everything over one control socket (``wire``). What it is given are sockets: it never enters a namespace. It runs as long
as the control socket is open; when it ends, for whatever reason, the sockets inside have nobody behind them and nothing
leaves.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

SITES = 3
"""Where in ``sys.argv`` of ``wire.GATEWAY`` the site directories begin."""


def main(control: int) -> NoReturn:
    """Serve until the control socket ends, then end the process.

    What is not of the standard library is looked for *after* it, in the directories that the launcher found: nothing
    there can stand in for a module of Python's own. So nothing of ours that needs such a library is imported before.
    """
    for directory in sys.argv[SITES:]:
        if directory not in sys.path:
            sys.path.append(directory)
    from remit.sandbox.egress.serve import run

    run(control)
    sys.exit(0)
