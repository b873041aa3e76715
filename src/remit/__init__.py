"""Remit runs an AI agent, or each of its tool calls, with exactly the authority it was granted.

    from remit import Grant, Session

    with Session(profile="coding", workspace=".") as session:
        result = session.run(["pytest", "-q"], grant=Grant(read=["."], exec=[".venv"], write=["build"]), timeout=60)

Names are loaded when they are first used (PEP 562): ``remit run`` uses none of them.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from remit.profiles.errors import ProfileError as ProfileError
    from remit.sandbox.authority import errors
    from remit.sandbox.authority.errors import GrantError as GrantError
    from remit.sandbox.authority.errors import LaunchError as LaunchError
    from remit.sandbox.authority.errors import Unenforceable as Unenforceable
    from remit.sandbox.session.aio import AsyncPopen as AsyncPopen
    from remit.sandbox.session.aio import AsyncSession as AsyncSession
    from remit.sandbox.session.asked import Grant as Grant
    from remit.sandbox.session.call import Popen as Popen
    from remit.sandbox.session.result import CalledProcessError as CalledProcessError
    from remit.sandbox.session.result import CompletedCall as CompletedCall
    from remit.sandbox.session.result import Denial as Denial
    from remit.sandbox.session.result import GrantExpired as GrantExpired
    from remit.sandbox.session.result import GrantRevoked as GrantRevoked
    from remit.sandbox.session.result import SessionClosed as SessionClosed
    from remit.sandbox.session.result import TimeoutExpired as TimeoutExpired
    from remit.sandbox.session.result import Usage as Usage
    from remit.sandbox.session.session import Session as Session
    from remit.sandbox.session.streams import DEVNULL as DEVNULL
    from remit.sandbox.session.streams import PIPE as PIPE
    from remit.sandbox.session.streams import STDOUT as STDOUT

    Error = errors.RemitError

__version__ = "0.1.0"

_HOMES = {
    "Error": "remit.sandbox.authority.errors:RemitError",
    "GrantError": "remit.sandbox.authority.errors",
    "LaunchError": "remit.sandbox.authority.errors",
    "Unenforceable": "remit.sandbox.authority.errors",
    "ProfileError": "remit.profiles.errors",
    "Grant": "remit.sandbox.session.asked",
    "CalledProcessError": "remit.sandbox.session.result",
    "CompletedCall": "remit.sandbox.session.result",
    "Denial": "remit.sandbox.session.result",
    "GrantExpired": "remit.sandbox.session.result",
    "GrantRevoked": "remit.sandbox.session.result",
    "SessionClosed": "remit.sandbox.session.result",
    "TimeoutExpired": "remit.sandbox.session.result",
    "Usage": "remit.sandbox.session.result",
    "DEVNULL": "remit.sandbox.session.streams",
    "PIPE": "remit.sandbox.session.streams",
    "STDOUT": "remit.sandbox.session.streams",
    "Popen": "remit.sandbox.session.call",
    "Session": "remit.sandbox.session.session",
    "AsyncPopen": "remit.sandbox.session.aio",
    "AsyncSession": "remit.sandbox.session.aio",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'remit' has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = home.partition(":")
    value: object = getattr(import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
