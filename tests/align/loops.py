"""``python -m tests.align.loops threads|asyncio``: agents that use the Python API, all in one session. Prints JSON.

Ten of mini-swe-agent's agents share a session, each with a hostile model of its own, each tool call under a grant of its
own. One does the demo's whole script; the others, at the same time, everything in it that is hostile. The house and the
witness are the demo's; only the way to the kernel differs: no ``remit run``, but ``Session.run`` from a thread for each
agent, or ``AsyncSession.run`` from a task for each.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from remit import STDOUT, AsyncSession, CompletedCall, Grant, Session
from tests.align.demo.arm import Outcome, outcome_of
from tests.align.demo.house import House, Setting
from tests.align.demo.model import HostileModel
from tests.align.demo.network import isolate
from tests.align.demo.script import Step, steps
from tests.align.demo.trace import PROFILE, profile, traced_calls
from tests.align.demo.witness import Witness

AGENTS = 10
_LIMIT = 120
_QUIET = {
    "MSWEA_CONFIGURED": "true",
    "MSWEA_SILENT_STARTUP": "1",
    "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "NO_PROXY": "*",
}


def _grant(command: str) -> Grant:
    """What one tool call may do: the workspace, no more. (What only looks gets only that.)"""
    if command.startswith("cat shop/"):
        return Grant(read=["."], purpose=command[:40])
    return Grant(read=["."], write=["."], exec=["."], purpose=command[:40])


def _observed(result: CompletedCall[str]) -> dict[str, Any]:
    return {"output": result.stdout, "returncode": result.returncode, "exception_info": ""}


class SessionEnvironment:
    """``minisweagent.Environment``: commands run in a session. The rest is the agent's own local environment's."""

    def __init__(self, session: Session | AsyncSession) -> None:
        self._session = session
        # Imported by name, because the checks run where the agent is not installed.
        self._local: Any = importlib.import_module("minisweagent.environments.local").LocalEnvironment()
        self.config = self._local.config
        self.get_template_vars = self._local.get_template_vars
        self.serialize = self._local.serialize

    def _options(self, action: dict[str, Any]) -> dict[str, Any]:
        command = action["command"]
        return {"args": ["bash", "-c", command], "grant": _grant(command), "stderr": STDOUT, "timeout": _LIMIT}

    def execute(self, action: dict[str, Any], cwd: str = "") -> dict[str, Any]:
        assert isinstance(self._session, Session)
        output = _observed(self._session.run(**self._options(action), text=True, errors="replace"))
        self._local._check_finished(output)
        return output

    async def execute_soon(self, action: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(self._session, AsyncSession)
        output = _observed(await self._session.run(**self._options(action), text=True, errors="replace"))
        self._local._check_finished(output)
        return output


def _agent(session: Session | AsyncSession, url: str) -> Any:
    agents = importlib.import_module("minisweagent.agents.default")
    models = importlib.import_module("minisweagent.models.litellm_model")
    model = models.LitellmModel(
        model_name="openai/hostile", model_kwargs={"api_base": url}, cost_tracking="ignore_errors"
    )
    return agents.DefaultAgent(
        model,
        SessionEnvironment(session),
        system_template="You can run commands.",
        instance_template="{{ task }}",
        cost_limit=0,
    )


def _in_threads(house: House, models: list[HostileModel]) -> list[Any]:
    """The agents' own loop, in a thread each."""
    with Session(PROFILE, house.repository) as session:
        agents = [_agent(session, model.url) for model in models]
        threads = [threading.Thread(target=agent.run, args=("fix the discount",)) for agent in agents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return agents


def _in_tasks(house: House, models: list[HostileModel]) -> list[Any]:
    """The same loop with its tool calls awaited, in a task each."""
    interrupt: Any = importlib.import_module("minisweagent.exceptions").InterruptAgentFlow

    async def loop(agent: Any) -> None:
        agent.add_messages(agent.model.format_message(role="user", content="fix the discount"))
        while agent.messages[-1].get("role") != "exit":
            message = await asyncio.to_thread(agent.query)
            try:
                outputs = [await agent.env.execute_soon(action) for action in message["extra"]["actions"]]
            except interrupt as end:
                agent.add_messages(*end.messages)
            else:
                variables = agent.get_template_vars()
                agent.add_messages(*agent.model.format_observation_messages(message, outputs, variables))

    async def main() -> list[Any]:
        async with AsyncSession(PROFILE, house.repository) as session:
            agents = [_agent(session, model.url) for model in models]
            await asyncio.gather(*(loop(agent) for agent in agents))
        return agents

    return asyncio.run(main())


def _hostile(script: list[Step], number: int) -> list[Step]:
    """The hostile steps for one more agent. Its file is its own: another's, half written, is a harmless configuration."""
    return [
        replace(step, command=step.command.replace(".git/planted", f".git/planted{number}"))
        for step in script
        if step.hostile
    ]


def _outcomes(agent: Any, model: HostileModel, script: list[Step]) -> list[Outcome]:
    """What an agent observed of each step of its script."""
    observed = {m["tool_call_id"]: m["extra"] for m in agent.messages if m.get("role") == "tool"}
    found = [outcome_of(step, observed.get(f"step-{step.name}")) for step in script[:-1]]
    # The agent ends on the submission itself, and its exit status is all that it notes of it.
    status = agent.messages[-1]["extra"]["exit_status"]
    submitted = status == "Submitted" and len(model.heard) == len(script)
    return [*found, Outcome(script[-1], "DONE" if submitted else status, "")]


def main() -> None:
    """Run it, and print a report."""
    run = {"threads": _in_threads, "asyncio": _in_tasks}[sys.argv[1]]
    me = os.geteuid()
    os.umask(0o022)
    isolated = isolate()
    setting = Setting(me, me, Path("/home") if me == 0 else Path.home(), profile("full"))
    with House(setting, shadow=True, installed=False) as house, ExitStack() as stack:
        os.environ.clear()
        os.environ.update(house.environment() | _QUIET | {"MSWEA_GLOBAL_CONFIG_DIR": str(house.agent)})
        whole = steps(house.targets)
        scripts = [whole, *([*_hostile(whole, number), whole[-1]] for number in range(1, AGENTS))]
        models = [stack.enter_context(HostileModel(script)) for script in scripts]
        heard: list[bytes] = []
        witness = Witness(house, heard)
        started = time.monotonic()
        agents = run(house, models)
        took = time.monotonic() - started
        for model in models:
            heard += model.heard
        witness.look()
        report = {
            "isolated": isolated,
            "seconds": took,
            "agents": [
                [asdict(outcome) | {"good": outcome.good} for outcome in _outcomes(agent, model, script)]
                for agent, model, script in zip(agents, models, scripts, strict=True)
            ],
            "effects": witness.effects(),
            "changes": witness.changes(),
            "task": witness.task(),
            "trace": asdict(traced_calls(house, witness, AGENTS)),
        }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
