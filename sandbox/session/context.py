"""A standing session's ceiling on disk, in its record: what ``remit exec`` measures a call's grant against.

Owner-only, below Remit's own state directory, which nothing inside a session can see. It holds no environment values but
placeholders, no secret and
no bindings that a start would trust: names and what they led to when the session began, to be compared, and the session's
first process opens every object anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from remit.sandbox.authority import codec
from remit.sandbox.authority.errors import RemitError
from remit.sandbox.authority.grant import Grant
from remit.sandbox.compile.call import Ceiling
from remit.sandbox.kernel.facts import HostFacts
from remit.sandbox.resolve.binding import Kind, Named
from remit.sandbox.session.result import SessionClosed

SCHEMA = "remit.context/1"
NAME = "context.json"


def write(ceiling: Ceiling, grant: Grant, held: tuple[str, ...], placeholders: Mapping[str, str]) -> str:
    """The text of a session's context. ``held``: the ids of the grants out of files that it runs under."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "grant": grant.to_json(),
            "held": list(held),
            "floor": codec.to_json(ceiling.floor),
            "names": [_named(named) for named in ceiling.names.values()],
            "facts": dataclasses.asdict(ceiling.facts),
            "workspace": ceiling.workspace,
            "home": ceiling.home,
            "directory": ceiling.directory,
            "degrade": list(ceiling.degrade),
            "secret": list(ceiling.secret),
            "own_code": list(ceiling.own_code),
            "matches": {text: [_named(named) for named in found] for text, found in ceiling.matches.items()},
            "freeze": ceiling.freeze,
            "certificates": ceiling.certificates,
            "withheld": list(ceiling.withheld),
            "placeholders": dict(placeholders),
        }
    )


def read(text: str, session: str) -> tuple[Ceiling, Grant, tuple[str, ...], dict[str, str]]:
    """What ``write`` wrote. Raises SessionClosed where it is anything else."""
    try:
        made: dict[str, Any] = json.loads(text)
        if made["schema"] != SCHEMA:
            raise ValueError(made["schema"])
        grant, held = Grant.from_json(made["grant"]), tuple(map(str, made["held"]))
        names = {named.path: named for named in map(_from, made["names"])}
        facts = {key: _tuples(value) for key, value in made["facts"].items()}
        ceiling = Ceiling(
            authority=grant.authority,
            floor=codec.from_json(made["floor"], "floor"),
            names=names,
            facts=HostFacts(**facts),
            workspace=made["workspace"],
            home=made["home"],
            directory=made["directory"],
            degrade=tuple(made["degrade"]),
            secret=tuple(made["secret"]),
            own_code=tuple(made["own_code"]),
            matches={text: tuple(map(_from, found)) for text, found in made["matches"].items()},
            freeze=bool(made["freeze"]),
            certificates=made["certificates"],
            placeholders=tuple(sorted(made["placeholders"])),
            withheld=tuple(made["withheld"]),
        )
        placeholders = {str(name): str(holder) for name, holder in made["placeholders"].items()}
    except (KeyError, TypeError, ValueError, RemitError) as error:
        raise SessionClosed(
            f"session {session}: its context cannot be read: {error}",
            hint="it was started by another version: start anew",
        ) from None
    return ceiling, grant, held, placeholders


def _named(named: Named) -> list[Any]:
    return [getattr(named, field.name) for field in dataclasses.fields(named) if field.name != "way"]


def _from(values: list[Any]) -> Named:
    path, canonical, kind, links, *rest = values
    return Named(path, canonical, Kind(kind), tuple((link, target) for link, target in links), *rest)


def _tuples(value: Any) -> Any:
    return tuple([_tuples(item) for item in value]) if isinstance(value, list) else value  # pyright: ignore[reportUnknownVariableType]
