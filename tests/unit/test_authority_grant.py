"""Authorities and grants: exact JSON round trips, strict reading, digests, narrowing that refuses and never clips."""

from __future__ import annotations

import copy
import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.sandbox.authority.codec import canonical_json, digest, from_json, to_json
from remit.sandbox.authority.errors import GrantError
from remit.sandbox.authority.grant import Grant
from remit.sandbox.authority.lattice import leq, normal
from remit.sandbox.authority.model import Authority, AutoExec, Endpoint, PathPattern, PathRule, Right, Source
from tests.unit.authority_universe import denotes, filesystems, networks, others

relaxed = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
authorities = st.one_of(filesystems, networks, others)

FULL = Authority(
    paths=(
        PathRule("/usr", frozenset({Right.READ, Right.EXEC}), True, Source("base.toml", 3, "filesystem.read")),
        PathRule("/w/naïve \udcff*", frozenset({Right.WRITE})),
    ),
    deny=(PathPattern("/", (".env",), True, Source("coding.toml", 9)), PathPattern("/w", ("a", "b"))),
    protect=(PathPattern("/w", (".github",)),),
    auto_exec=AutoExec.PROTECT,
    opened=(".vscode",),
    connect=(Endpoint("example.com", True, "10.0.0.0/8", 443), Endpoint(network="2001:db8::/32", protocol="udp")),
    listen=(3000, 80),
    publish=("127.0.0.1:8080:3000", "[::1]:80:80"),
    loopback=False,
    unix=("/run/s",),
    syscalls=("bpf",),
    devices=("kvm", "dri/renderD128"),
    environment=(("LANG", None), ("CI", "1"), ("EMPTY", "")),
    limits=(("pids", 512), ("memory", 4 << 30)),
)


def sources(a: Authority) -> list[Source]:
    lines: list[PathRule | PathPattern | Endpoint] = [*a.paths, *a.deny, *a.protect, *a.connect]
    return [line.source for line in lines]


def test_round_trip_keeps_everything() -> None:
    back = from_json(json.loads(json.dumps(to_json(FULL))))
    assert back == FULL
    assert sources(back) == sources(FULL)
    assert from_json(to_json(Authority())) == Authority()
    assert all(source == Source("") for source in sources(from_json(to_json(FULL, sources=False))))


@relaxed
@given(authorities)
def test_round_trip_of_normal_forms(a: Authority) -> None:
    made = normal(a)
    assert from_json(json.loads(canonical_json(to_json(made)))) == made
    assert digest(from_json(to_json(made))) == digest(a)


@relaxed
@given(authorities, authorities)
def test_digest_is_that_of_the_normal_form(a: Authority, b: Authority) -> None:
    assert (digest(a) == digest(b)) == (normal(a) == normal(b))


def test_digest_is_stable_and_forgets_sources() -> None:
    assert digest(Authority()) == "987bf845f1718f4f766302b4635d0404aa8e82f79024f08453d0e4452f6369c3"
    bare = replace(FULL, paths=tuple(replace(r, source=Source("elsewhere", 1)) for r in reversed(FULL.paths)))
    assert digest(bare) == digest(FULL)
    assert digest(replace(FULL, loopback=True)) != digest(FULL)


def test_digest_tells_a_deny_apart_that_takes_nothing_by_name() -> None:
    """Through a symbolic link it may take something: two plans must not share one digest."""
    a = Authority(paths=(PathRule("/q", frozenset({Right.READ})),))
    assert digest(a) != digest(replace(a, deny=(PathPattern("/p/link", ("key",)),)))


def set_at(made: Any, path: str, value: object) -> Any:
    changed = copy.deepcopy(made)
    *above, last = path.split(".")
    at: Any = changed
    for key in above:
        at = at[int(key) if key.isdigit() else key]
    at[int(last) if last.isdigit() else last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", "remit.authority/2"),
        ("surprise", 1),
        ("paths", {}),
        ("paths", None),
        ("paths.0", []),
        ("paths.0.path", "usr"),
        ("paths.0.path", "/usr/"),
        ("paths.0.path", "/usr/../etc"),
        ("paths.0.path", "/usr\x00"),
        ("paths.0.path", 7),
        ("paths.0.rights", "read"),
        ("paths.0.rights", ["reed"]),
        ("paths.0.rights", ["read", "read"]),
        ("paths.0.rights", [["read"]]),
        ("paths.0.optional", 1),
        ("paths.0.more", 1),
        ("paths.0.source", "base.toml:3"),
        ("paths.0.source.line", -1),
        ("paths.0.source.file", None),
        ("deny.0.anchor", "/a/.."),
        ("deny.0.tail", []),
        ("deny.0.tail", ".env"),
        ("deny.0.tail", [".."]),
        ("deny.0.tail", ["a/b"]),
        ("deny.0.tail", ["a\x01"]),
        ("deny.0.tail", [1]),
        ("deny.0.any_depth", "yes"),
        ("protect.0", "/w/.github"),
        ("auto_exec", "off"),
        ("auto_exec", None),
        ("opened", ["x", "x"]),
        ("connect.0.name", "Example.com"),
        ("connect.0.name", "example.com."),
        ("connect.0.name", "127.1"),
        ("connect.0.name", "*"),
        ("connect.0.name", "a\x00b"),
        ("connect.0.network", "10.0.0.1/8"),
        ("connect.0.network", "10.0.0.1"),
        ("connect.0.network", "example.com"),
        ("connect.0.network", "::ffff:10.0.0.0/104"),
        ("connect.0.port", 65536),
        ("connect.0.port", -1),
        ("connect.0.port", True),
        ("connect.0.port", 443.0),
        ("connect.0.port", "443"),
        ("connect.0.protocol", "sctp"),
        ("connect.0.wildcard", 0),
        ("connect.1.network", ""),
        ("listen", [0]),
        ("listen", [80, 80]),
        ("listen", ["80"]),
        ("publish", ["8080:80"]),
        ("publish", ["localhost:8080:80"]),
        ("publish", [80]),
        ("publish", []),
        ("loopback", "false"),
        ("loopback", None),
        ("unix", ["run/s"]),
        ("syscalls", ["everything"]),
        ("devices", ["/dev/kvm"]),
        ("devices", ["../etc"]),
        ("environment", {"A": "1"}),
        ("environment", [{"name": "A", "value": "1"}, {"name": "A", "value": None}]),
        ("environment.0.name", "A=B"),
        ("environment.0.value", 1),
        ("environment.0.value", "a\x00b"),
        ("environment.0.value", "\ud800"),
        ("limits", []),
        ("limits.pids", 0),
        ("limits.pids", True),
        ("limits.pids", "512"),
        ("limits.pids", 1 << 63),
        ("limits.processes", 1),
    ],
)
def test_reading_is_strict(path: str, value: object) -> None:
    with pytest.raises(GrantError) as caught:
        from_json(set_at(to_json(FULL), path, value))
    assert caught.value.where.startswith("authority")


@pytest.mark.parametrize("key", list(to_json(Authority())))
def test_every_key_is_needed(key: str) -> None:
    made = to_json(FULL)
    del made[key]
    with pytest.raises(GrantError, match=f"missing key '{key}'"):
        from_json(made)


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_an_authority_is_an_object(value: object) -> None:
    with pytest.raises(GrantError, match="expected an object"):
        from_json(value)


def grant(authority: Authority = FULL, **more: Any) -> Grant:
    return Grant(authority=authority, grantor="alice", principal="agent", **more)


def test_ids_are_random_and_long() -> None:
    ids = {grant().id for _ in range(50)}
    assert len(ids) == 50
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in ids)


def test_a_grant_is_a_value() -> None:
    made = grant(id="0" * 32)
    assert made == grant(id="0" * 32)
    with pytest.raises(FrozenInstanceError):
        made.uses = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "x"},
        {"id": "A" * 32},
        {"id": "0" * 31},
        {"parent": "0" * 32},
        {"parent_digest": "0" * 64},
        {"parent": "0" * 32, "parent_digest": "0" * 63},
        {"expires": float("nan")},
        {"expires": float("inf")},
        {"not_before": 10**400},
        {"not_before": 5.0, "expires": 5.0},
        {"uses": 0},
        {"task": "a\0b"},
    ],
)
def test_a_malformed_grant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(GrantError):
        grant(**wrong)


def test_period() -> None:
    made = grant(not_before=10, expires=20)
    assert [made.active(t) for t in (9.9, 10, 19.9, 20)] == [False, True, True, False]
    assert grant().active(0)


def test_grant_round_trip() -> None:
    made = grant(task="t", purpose="p", not_before=1, expires=2.5, uses=3, session="s").narrow(FULL)
    back = Grant.from_json(json.loads(json.dumps(made.to_json())))
    assert back == made
    assert back.digest() == made.digest()
    assert sources(back.authority) == sources(made.authority)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", "remit.authority/1"),
        ("signature", ""),
        ("id", None),
        ("grantor", None),
        ("authority", {}),
        ("authority.listen", [0]),
        ("expires", "tomorrow"),
        ("expires", True),
        ("uses", 0),
        ("uses", 1.0),
        ("uses", True),
        ("parent", 5),
        ("session", None),
    ],
)
def test_reading_a_grant_is_strict(path: str, value: object) -> None:
    with pytest.raises(GrantError):
        Grant.from_json(set_at(grant().to_json(), path, value))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "1" * 32},
        {"grantor": "mallory"},
        {"principal": "other"},
        {"task": "t"},
        {"purpose": "p"},
        {"not_before": 1.0},
        {"expires": 1.0},
        {"uses": 1},
        {"parent": "0" * 32, "parent_digest": "0" * 64},
        {"session": "s"},
        {"authority": Authority()},
    ],
)
def test_the_digest_is_over_every_field(change: dict[str, Any]) -> None:
    made = grant(id="0" * 32)
    assert replace(made, **change).digest() != made.digest()


def test_the_digest_forgets_sources_and_number_types() -> None:
    bare = from_json(to_json(FULL, sources=False))
    assert grant(bare, id="0" * 32, expires=5).digest() == grant(FULL, id="0" * 32, expires=5.0).digest()


def test_narrowing_chains() -> None:
    root = grant(expires=100.0, uses=5, task="t")
    child = root.narrow(replace(FULL, listen=(80,)), principal="tool", purpose="tests", uses=1)
    assert child.follows(root)
    assert (child.parent, child.parent_digest) == (root.id, root.digest())
    assert (child.grantor, child.principal, child.task, child.purpose) == ("agent", "tool", "t", "tests")
    assert (child.expires, child.uses) == (100.0, 1)
    assert child.id != root.id
    assert not child.follows(replace(root, expires=200.0))
    assert not child.follows(replace(root, authority=replace(FULL, loopback=True)))


def test_narrowing_names_every_offending_object() -> None:
    root = grant(expires=100.0, not_before=10.0, uses=5)
    wide = replace(
        FULL,
        paths=(PathRule("/etc", frozenset({Right.READ})),),
        listen=(81,),
        syscalls=("perf",),
        limits=(("pids", 513),),
    )
    with pytest.raises(GrantError) as caught:
        root.narrow(wide, expires=101.0, not_before=9.0, uses=6)
    for part in (
        "read /etc",
        "listen 81",
        "call perf",
        "513 is above",
        "memory: unlimited",
        "expires",
        "before",
        "uses",
    ):
        assert part in caught.value.message
    assert root.id in caught.value.where


def test_narrowing_carries_deny_and_protect() -> None:
    root = grant(FULL)
    child = root.narrow(Authority(loopback=False, limits=FULL.limits))
    assert child.authority.deny == normal(FULL).deny
    assert child.authority.protect == normal(FULL).protect
    assert child.authority.paths == ()


@relaxed
@given(st.one_of(*(st.tuples(one, one) for one in (filesystems, networks, others))))
def test_narrowing_never_widens_and_never_clips(pair: tuple[Authority, Authority]) -> None:
    a, b = pair
    root = grant(b)
    if denotes(a) <= denotes(b):
        child = root.narrow(a)
        assert denotes(child.authority) == denotes(a)
        assert leq(child.authority, b)
        assert set(normal(b).deny) <= set(child.authority.deny)
        assert set(normal(b).protect) <= set(child.authority.protect)
    else:
        with pytest.raises(GrantError):
            root.narrow(a)
