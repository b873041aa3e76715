"""The decision, without effects: may (canonical path, right) be, and what would a rename carry across a rule.

Rules are literal paths and tails of literal components. Nothing here looks at a file; what depends on what exists is
returned as names for the caller to look up, one or two for each rule, never a tree.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Pattern: TypeAlias = tuple[str, tuple[str, ...], bool, str]
    Deep: TypeAlias = tuple[bytes, bytes, tuple[bytes, ...], int, str]

DENY, PROTECT, CATALOGUE = 0, 1, 2
READ, WRITE, REMOVE = "read", "write", "remove"

CONFIG_NAMES = (b"config", b"config.worktree")
MARKERS = (b"objects", b"refs")
PROGRAM_DIRECTORIES = (b"bin", b"Scripts")
GIT, HOOK_DIRECTORY = b".git", b"hooks"


def under(path: bytes, directory: bytes) -> bool:
    """``path`` is ``directory`` or below it (both canonical)."""
    return path == directory or directory == b"/" or path.startswith(directory + b"/")


def join(directory: bytes, name: bytes) -> bytes:
    """A canonical directory and one name in it."""
    return b"/" + name if directory == b"/" else directory + b"/" + name


class Rules:
    """``deny``, ``protect`` and the catalogue of one session, over canonical paths as bytes.

    Its tables are made when the first is looked at: many a command ends before anything is decided about a name.
    """

    def __init__(
        self,
        roots: tuple[bytes, ...],
        deny: tuple[Pattern, ...],
        protect: tuple[Pattern, ...],
        catalogue: tuple[tuple[str, ...], ...],
        opened: tuple[str, ...],
    ) -> None:
        self._made_of = roots, deny, protect, catalogue, opened

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Of a table that is not there yet.
            if "_made_of" in self.__dict__:
                self._make()
                return getattr(self, name)
            raise AttributeError(name)

    def _make(self) -> None:
        roots, deny, protect, catalogue, opened = self._made_of
        del self._made_of
        literals: list[tuple[bytes, int, str]] = []
        deep: list[Deep] = []
        for kind, patterns in ((DENY, deny), (PROTECT, protect)):
            for anchor, tail, any_depth, text in patterns:
                names = tuple([_bytes(name) for name in tail])
                base = b"" if anchor == "/" else _bytes(anchor)
                if any_depth:
                    deep.append((base, b"/" + b"/".join(names) + b"/", names, kind, text))
                else:
                    literals.append((base + b"/" + b"/".join(names), kind, text))
        hooks: list[bytes] = []
        interpreters: list[bytes] = []
        packages: list[bytes] = []
        special_kinds = {"hook": hooks, "interpreter": interpreters, "package": packages}
        for row in catalogue:
            kind_name = row[0]
            text = "/".join(row[1:])
            tail_bytes = _bytes(text)
            if kind_name == "any":
                deep.append(
                    (b"", b"/" + tail_bytes + b"/", tuple(tail_bytes.split(b"/")), CATALOGUE, "auto_exec " + text)
                )
            elif kind_name == "top":
                literals.extend([(root + b"/" + tail_bytes, CATALOGUE, "auto_exec " + text) for root in roots])
            else:
                special_kinds[kind_name].append(tail_bytes)
        self._literals = literals
        self._prefixes = tuple([path for path, _, _ in literals])
        self._deep = deep
        self._triggers = frozenset([names[0] for _, _, names, _, _ in deep])
        self._triggered = {first: tuple([rule for rule in deep if rule[2][0] == first]) for first in self._triggers}
        self._opened = tuple([_bytes(path) for path in opened])
        self._packages = frozenset(packages)
        self.hooks = frozenset(hooks)
        self.interpreters = frozenset(interpreters)
        self.catalogue = bool(catalogue)
        special = [*hooks, *interpreters]
        if catalogue:
            special += [*CONFIG_NAMES, *MARKERS, *PROGRAM_DIRECTORIES, GIT, HOOK_DIRECTORY]
        self.special = frozenset(special)
        """Last names whose meaning depends on what lies around them."""
        self._heads = frozenset([head for _, _, names, _, _ in deep for head in names[:-1]])

    def decide(self, path: bytes, right: str) -> str:
        """The text of the rule that refuses ``right`` on ``path``, or the empty string."""
        if path.startswith(self._prefixes):
            for literal, kind, text in self._literals:
                if under(path, literal) and self._refuses(kind, right, path):
                    return text
        hit = self._triggers.intersection(path.split(b"/"))
        if not hit:
            return ""
        # Of a repository's objects, thousands, only the rules about ``.git`` can speak.
        near = self._triggered[next(iter(hit))] if len(hit) == 1 else [rule for rule in self._deep if rule[2][0] in hit]
        slashed = path + b"/"
        for anchor, needle, _, kind, text in near:
            at = slashed.find(needle, len(anchor)) if slashed.startswith(anchor + b"/") else -1
            if at >= 0 and self._refuses(kind, right, path) and not (kind == CATALOGUE and self.packaged(path[:at])):
                return text
        return ""

    def ordinary(self, directory: bytes) -> bool:
        """In ``directory`` no rule refuses to make, write or remove what has none of the names of ``endings``: a rule of such a
        path would have to be one of the directory, or end in the name."""
        return not self.decide(directory, WRITE)

    def endings(self) -> set[bytes]:
        """The names that the rules end in, and those that mean something to a repository."""
        ends = {literal.rpartition(b"/")[2] for literal in self._prefixes}
        return ends.union([names[-1] for _, _, names, _, _ in self._deep], self.special)

    def _refuses(self, kind: int, right: str, path: bytes) -> bool:
        if kind == DENY:
            return True
        if kind == PROTECT:
            return right != READ
        return right != READ and not self.opened(path)

    def opened(self, path: bytes) -> bool:
        """A grant opened this catalogue name."""
        return any(under(path, name) for name in self._opened)

    def packaged(self, path: bytes) -> bool:
        """``path`` is or lies in a directory of installed packages."""
        return not self._packages.isdisjoint(path.split(b"/"))

    def governed(self, path: bytes) -> list[tuple[bytes, str]]:
        """What would be refused *below* a directory because it is called ``path``: (relative path, rule text).

        Rules whose tail lies wholly below the directory, or wholly above it, mean the same wherever it is moved.
        """
        found = [
            (literal[len(path) + 1 :], text)
            for literal, kind, text in self._literals
            if literal.startswith(path + b"/") and not (kind == CATALOGUE and self.opened(literal))
        ]
        if path.rpartition(b"/")[2] not in self._heads:
            return found
        for anchor, _, names, kind, text in self._deep:
            for split in range(1, len(names)):
                head = b"/" + b"/".join(names[:split])
                if not path.endswith(head) or not path[: -len(head)].startswith(anchor):
                    continue
                rest = b"/".join(names[split:])
                exempt = self.packaged(path) or self.opened(path + b"/" + rest)
                if not (kind == CATALOGUE and exempt):
                    found.append((rest, text))
        return found

    def crosses(self, old: bytes, new: bytes) -> bool:
        """Moving a *directory* would take a tree in or out of the reach of a rule of any depth.

        Then nobody can know without a walk what it carries. The mediator answers EXDEV, as between two file systems:
        ``mv`` copies and removes, and each step is decided for itself.
        """
        if self._packages and self.packaged(old) and not self.packaged(new):
            return True
        for anchor, _, _, kind, _ in self._deep:
            if kind == CATALOGUE:
                continue
            if under(old, anchor or b"/") != under(new, anchor or b"/") or under(anchor, old) or under(anchor, new):
                return True
        return False

    def component(self, path: bytes) -> str:
        """The rule that a symbolic link called ``path`` would redirect, or the empty string."""
        for name, text in self.governed(path):
            if name:
                return text
        for anchor, _, _, kind, text in self._deep:
            if kind != CATALOGUE and under(anchor, path):
                return text
        return ""


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
