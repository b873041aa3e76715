"""What one source (a session, or one of its calls) may do, as the gateway asks it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from remit.sandbox.authority.web import HttpRule
from remit.sandbox.egress.decide import Rules
from remit.sandbox.egress.relay import Relay
from remit.sandbox.egress.secrets import Exchange


@dataclass(frozen=True, slots=True)
class Web:
    """The HTTP rules and credentials of a session."""

    rules: tuple[HttpRule, ...] = ()
    exchanges: tuple[Exchange, ...] = ()

    def names(self) -> list[str]:
        """The hosts whose requests may have to be read; ``*.`` before those with all that is below them."""
        found = [rule.pattern for rule in self.rules]
        return list(dict.fromkeys([*found, *[one.host for one in self.exchanges]]))

    def given(self, variables: Collection[str]) -> Web:
        """What is left for a call that was given the placeholders in these variables. No call can do without the rules."""
        kept = tuple([one for one in self.exchanges if not one.variable or one.variable in variables])
        return replace(self, exchanges=kept) if len(kept) < len(self.exchanges) else self

    def reads(self, host: str) -> bool:
        """Whether requests to ``host`` have to be read: something is said about it beyond names and ports."""
        return bool(self.rules or self.exchanges) and bool(self.rules_of(host) or self.exchanges_of(host))

    def rules_of(self, host: str) -> list[HttpRule]:
        """The HTTP rules about ``host``; where there are none, every request is allowed."""
        return [rule for rule in self.rules if rule.holds(host)] if host else []

    def exchanges_of(self, host: str) -> list[Exchange]:
        """The credentials for exactly ``host``: no wildcard says where a secret goes."""
        return [one for one in self.exchanges if one.host == host] if host else []

    def allows(self, host: str, method: str, path: str) -> HttpRule | bool | None:
        """The rule that allows a request; True where there are no rules about ``host``, None where none allows it."""
        rules = self.rules_of(host)
        return next((rule for rule in rules if rule.allows(method, path)), None) if rules else True


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Whose connection it is: the call ("" for the session's own), its rules, the session's web rules; and its relays,
    which end with it."""

    call: str
    rules: Rules
    web: Web = Web()
    relays: set[Relay] = field(default_factory=lambda: set[Relay]())
