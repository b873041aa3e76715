"""What git configuration may be written inside: an allow-list of keys, checked on the mediator's own copy.

git reads ``.git/config`` whenever it runs, also outside and also under a shell prompt, and dozens of keys name commands
(``core.fsmonitor``, ``core.sshCommand``, ``alias.*``, ``filter.*.clean`` ...; every release may add one). So keys are
allowed one by one, and a line that is not allowed may stay only if the file that is replaced has the very same line.

The grammar here is narrower than git's (``git-config(1)``, *Syntax*): what it does not understand (a backslash, a key
beside its section, a control byte) is refused, never skipped.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    Line: TypeAlias = tuple[bytes, bytes, bytes, bytes]

_BOOLEAN = frozenset({b"true", b"false", b"yes", b"no", b"on", b"off", b"1", b"0", b""})


def _anything(value: bytes) -> bool:
    return True


def _boolean(value: bytes) -> bool:
    return value.lower() in _BOOLEAN


def _word(value: bytes) -> bool:
    """A word or a number: nothing that a shell, a path lookup or an option parser could make something of."""
    return value.replace(b"-", b"").replace(b".", b"").replace(b",", b"").isalnum() and value[:1] != b"-"


def _address(value: bytes) -> bool:
    """A remote's address. ``helper::address`` runs ``git-remote-helper``, ``ext::`` any command; ``-x`` is an option."""
    return b"::" not in value and value[:1] != b"-"


def _submodule_update(value: bytes) -> bool:
    return value in (b"checkout", b"merge", b"rebase", b"none")


_KEYS: dict[bytes, dict[bytes, Callable[[bytes], bool]]] = {
    b"core": {
        b"repositoryformatversion": _word,
        b"filemode": _boolean,
        b"bare": _boolean,
        b"logallrefupdates": _word,
        b"ignorecase": _boolean,
        b"precomposeunicode": _boolean,
        b"symlinks": _boolean,
        b"autocrlf": _word,
        b"eol": _word,
        b"safecrlf": _word,
        b"quotepath": _boolean,
        b"abbrev": _word,
        b"sharedrepository": _word,
        b"compression": _word,
        b"bigfilethreshold": _word,
        b"untrackedcache": _word,
        b"preloadindex": _boolean,
        b"commitgraph": _boolean,
        b"multipackindex": _boolean,
        b"sparsecheckout": _boolean,
        b"sparsecheckoutcone": _boolean,
        b"splitindex": _boolean,
        b"longpaths": _boolean,
        b"trustctime": _boolean,
        b"checkstat": _word,
    },
    b"extensions": {
        b"worktreeconfig": _boolean,
        b"objectformat": _word,
        b"refstorage": _word,
        b"partialclone": _word,
        b"preciousobjects": _boolean,
        b"noop": _anything,
        b"relativeworktrees": _boolean,
    },
    b"user": {b"name": _anything, b"email": _anything, b"useconfigonly": _boolean},
    b"author": {b"name": _anything, b"email": _anything},
    b"committer": {b"name": _anything, b"email": _anything},
    b"remote": {
        b"url": _address,
        b"pushurl": _address,
        b"fetch": _anything,
        b"push": _anything,
        b"tagopt": lambda value: value in (b"--no-tags", b"--tags"),
        b"prune": _boolean,
        b"prunetags": _boolean,
        b"mirror": _boolean,
        b"promisor": _boolean,
        b"partialclonefilter": _anything,
        b"skipdefaultupdate": _boolean,
        b"skipfetchall": _boolean,
        b"pushdefault": _word,
    },
    b"branch": {
        b"remote": _address,
        b"pushremote": _address,
        b"merge": _anything,
        b"rebase": _word,
        b"description": _anything,
        b"autosetupmerge": _word,
        b"autosetuprebase": _word,
        b"vscode-merge-base": _anything,
    },
    b"submodule": {
        b"url": _address,
        b"active": _anything,
        b"branch": _anything,
        b"ignore": _word,
        b"shallow": _boolean,
        b"path": _anything,
        b"recurse": _boolean,
        b"fetchrecursesubmodules": _word,
        b"update": _submodule_update,
        b"fetchjobs": _word,
        b"alternatelocation": _word,
        b"alternateerrorstrategy": _word,
    },
    b"init": {b"defaultbranch": _anything},
    b"pull": {b"rebase": _word, b"ff": _word},
    b"push": {b"default": _word, b"autosetupremote": _boolean, b"followtags": _boolean},
    b"fetch": {b"prune": _boolean, b"prunetags": _boolean, b"parallel": _word, b"recursesubmodules": _word},
    b"merge": {b"ff": _word, b"conflictstyle": _word, b"log": _word, b"renames": _word, b"renamelimit": _word},
    b"rebase": {b"autosquash": _boolean, b"autostash": _boolean, b"updaterefs": _boolean},
    b"rerere": {b"enabled": _boolean, b"autoupdate": _boolean},
    b"diff": {b"renames": _word, b"algorithm": _word, b"context": _word, b"renamelimit": _word, b"submodule": _word},
    b"status": {b"showuntrackedfiles": _word, b"submodulesummary": _word, b"branch": _boolean, b"short": _boolean},
    b"commit": {b"verbose": _word, b"gpgsign": _boolean, b"cleanup": _word},
    b"tag": {b"sort": _word, b"gpgsign": _boolean},
    b"log": {b"date": _word, b"follow": _boolean, b"decorate": _word},
    b"color": {b"ui": _word},
    b"advice": {b"detachedhead": _boolean, b"skippedcherrypicks": _boolean, b"addignoredfile": _boolean},
    b"gc": {b"auto": _word, b"autodetach": _boolean, b"autopacklimit": _word, b"pruneexpire": _word},
    b"maintenance": {b"auto": _boolean, b"strategy": _word},
    b"pack": {b"threads": _word, b"window": _word, b"depth": _word, b"writebitmaps": _boolean},
    b"index": {b"version": _word, b"threads": _word, b"sparse": _boolean},
    b"receive": {b"denynonfastforwards": _boolean, b"denycurrentbranch": _word, b"denydeletes": _boolean},
    b"http": {b"postbuffer": _word},
    b"lfs": {b"repositoryformatversion": _word},
    b"gui": {b"wmstate": _word},
}


def parse(text: bytes) -> list[Line] | None:
    """Lines of ``text`` as (section, subsection, key, value), names in lower case; None where the grammar ends."""
    if any(byte < 32 and byte not in (9, 10) for byte in text) or b"\\" in text:
        return None
    lines: list[Line] = []
    section = subsection = b""
    for raw in text.split(b"\n"):
        line = raw.strip(b" \t")
        if not line or line[:1] in (b"#", b";"):
            continue
        if line[:1] == b"[":
            if line[-1:] != b"]" or b"]" in line[:-1].partition(b'"')[0]:
                return None
            head, quote, rest = line[1:-1].partition(b'"')
            section = head.strip(b" \t").lower()
            if quote:
                if rest[-1:] != b'"' or b'"' in rest[:-1]:
                    return None
                subsection = rest[:-1]
            else:
                section, _, subsection = section.partition(b".")
            if not section.replace(b"-", b"").isalnum():
                return None
            continue
        key, equals, value = line.partition(b"=")
        key = key.strip(b" \t").lower()
        if not section or not key.replace(b"-", b"").isalnum() or not key[:1].isalpha():
            return None
        value = value.strip(b" \t")
        if value[:1] == b'"' and value[-1:] == b'"' and b'"' not in value[1:-1] and len(value) > 1:
            value = value[1:-1]
        elif b'"' in value:
            return None
        lines.append((section, subsection, key, value if equals else b""))
    return lines


def refused(text: bytes, existing: bytes, worktree_allowed: Callable[[bytes], bool]) -> str:
    """The first key of ``text`` that may not be written, or the empty string.

    ``existing`` is the content of the file that is replaced: what stands there may stay. ``worktree_allowed`` judges
    ``core.worktree``, which submodules need and which tells git where to write files.
    """
    lines = parse(text)
    if lines is None:
        return "a line that Remit does not parse"
    kept = frozenset(parse(existing) or ())
    for line in lines:
        section, _, key, value = line
        if line in kept:
            continue
        if section == b"core" and key == b"worktree":
            if worktree_allowed(value):
                continue
        else:
            allowed = _KEYS.get(section, {}).get(key)
            if allowed is not None and allowed(value):
                continue
        return (section + b"." + key).decode("ascii", "replace")
    return ""
