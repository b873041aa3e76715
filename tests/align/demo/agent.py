"""The agent's process: mini-swe-agent as published, with an environment that puts a command before each tool call.

``python -m tests.align.demo.agent`` takes the arguments of the ``mini`` command. The only thing that is ours is the
environment class, which is the hook that the agent offers for this: it hands each command to a prefix (``remit run …
-- bash -c``) instead of to the shell, and leaves the rest to the agent's own local environment.
"""

from __future__ import annotations

import importlib
import shlex
from typing import Any

_LOCAL = "minisweagent.environments.local"


class PrefixedEnvironment:
    """``minisweagent.Environment``: commands run as ``PREFIX COMMAND``, where PREFIX is words for the shell."""

    def __init__(self, *, prefix: str, **settings: Any) -> None:
        # Imported by name, because the checks run where the agent is not installed.
        self._local: Any = importlib.import_module(_LOCAL).LocalEnvironment(**settings)
        self._prefix = prefix

    @property
    def config(self) -> Any:
        return self._local.config

    def execute(self, action: dict[str, Any], cwd: str = "") -> dict[str, Any]:
        command = f"{self._prefix} {shlex.quote(action.get('command', ''))}"
        result: dict[str, Any] = self._local.execute({**action, "command": command}, cwd)
        return result

    def get_template_vars(self, **variables: Any) -> dict[str, Any]:
        result: dict[str, Any] = self._local.get_template_vars(**variables)
        return result

    def serialize(self) -> dict[str, Any]:
        result: dict[str, Any] = self._local.serialize()
        return result


if __name__ == "__main__":
    importlib.import_module("minisweagent.run.mini").app()
