"""The in-child stage of ``remit run``: PID 1 of the session. It executes a plan, starts the command, mediates, reaps, and
ends with it.

Forked (``clone3``) from a launcher that holds nothing of the caller but its environment, which the stage wipes before
anything else; before the plan was known (``early``), or with it. Standard library only, everything imported before it
restricts itself. The order is the proof:

1. file system (``root``), identity, no_new_privs, capabilities but CAP_SYS_PTRACE of the session's own user namespace;
2. Landlock domain *session* on the main thread, which becomes the mediator and never runs anything else's code;
3. a second thread nests itself in the domain *command*, drops the last capability, loads the filter, proves with canaries
   that each layer holds, and spawns the command, which inherits all of it.

The mediator is in an ancestor of the command's Landlock domain: Landlock lets it look into the command, never the
reverse.
"""

from __future__ import annotations

import _thread
import marshal
import posix

from remit.sandbox.kernel import landlock, notify, process
from remit.sandbox.launch import program
from remit.sandbox.launch.ground import Ground, told
from remit.sandbox.launch.init import Init
from remit.sandbox.launch.request import unpacked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from remit.sandbox.launch.request import Request


def serve(control: int, packed: tuple[Any, ...]) -> None:
    """Be the first process of the request that came as a message (``early``). Ends the process."""
    Stage(unpacked(control, packed)).run()


class Stage:
    """One session's PID 1, until the command runs. Made and run in the child, once."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._ground = Ground(request)

    def run(self) -> None:
        """Ends the process. Every failure before the command is told to the launcher; none looks like the command's."""
        try:
            self._confine()
            ground = self._ground
            init = Init(self._request, ground.descriptors, ground.terminal, ground.found, ground.hidden)
            _thread.start_new_thread(self._start_command, (init,))
            init.loop()
        except Exception as error:
            posix.write(self._request.control, marshal.dumps(("failed", *told(error))))

    def _confine(self) -> None:
        ground = self._ground
        ground.enter()
        ground.lock(1 << process.CAP_SYS_PTRACE if "unshare" in ground.found else 0)
        if "landlock" in ground.found:
            ground.make_rulesets()
            landlock.restrict_self(ground.rulesets["session"])
        else:
            ground.close_root()

    # --- the command's thread ----------------------------------------------------------------------------------------

    def _start_command(self, init: Init) -> None:
        ground = self._ground
        try:
            self._confine_thread(init)
            ground.prove()
            if ground.canary >= 0:
                posix.close(ground.canary)
            init.enforced(ground.enforcement)
            init.command_started(self._spawn(init))
        except Exception as error:
            phase, message, hint, status = told(error)
            # Here a name that is not there is the command's business, not the plan's.
            init.command_failed(("launch" if phase == "changed" else phase, message, hint, status))

    def _confine_thread(self, init: Init) -> None:
        # Its own working directory and umask: the mediator changes the main thread's.
        process.unshare(process.CLONE_FS)
        program.enter(self._request.directory)
        ground = self._ground
        if "command" in ground.rulesets:
            landlock.restrict_self(ground.rulesets["command"])
        process.set_capabilities(0)
        if "seccomp" in ground.found:
            _, code, notifies = ground.found["seccomp"]
            listener = notify.load_filter(code, listener=bool(notifies))
            if notifies:
                init.listen(listener)

    def _spawn(self, init: Init) -> int:
        request = self._request
        return program.start(
            request.argv,
            request.environment,
            directory=request.directory,
            descriptors=tuple(self._ground.descriptors),
            new_group=True,
            foreground=self._ground.terminal,
            about_to=init.attend,
        )
