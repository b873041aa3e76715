"""Chains of signed grants: what holds, and that nothing else does. Each refusal has its other arm beside it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import run
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.cli import grant as cli_grant
from remit.sandbox.authority import proof
from remit.sandbox.authority.errors import GrantError
from remit.sandbox.authority.grant import Grant
from remit.sandbox.authority.lattice import leq
from remit.sandbox.authority.model import Authority
from remit.sandbox.authority.proof import MAX_DEPTH, Chain, Claim, Signed, dump, parse, problems, verify
from remit.sandbox.session.keys import Trusted
from tests.unit.authority_universe import denotes, filesystems, networks, others
from tests.unit.grants import (
    ALICE,
    BOB,
    KNOWN,
    MALLORY,
    NARROW,
    NOW,
    WIDE,
    chain,
    reads,
    reads_below,
    root,
    three,
)

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((Path(cli_grant.__file__).parent / "schemas" / "grant-file.schema.json").read_text())
BAD = sorted((Path(__file__).parent / "fixtures" / "grants" / "bad").glob("*.json"))
relaxed = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


def says(made: Chain, keys: Trusted = KNOWN, at: float = NOW, **more: Any) -> list[str]:
    """What is wrong, each in words; and that ``verify`` raises exactly then, with all of it and one hint."""
    found = problems(made, keys, at=at, **more)
    if found:
        with pytest.raises(GrantError) as caught:
            verify(made, keys, at=at, **more)
        assert all(str(one) in str(caught.value) for one in found)
        assert caught.value.hint == found[0].hint
        assert all(one.hint and one.id in str(one) for one in found)
    else:
        assert verify(made, keys, at=at, **more) is made
    return [str(one) for one in found]


def resigned(made: Chain, index: int, **change: Any) -> Chain:
    """The chain with one grant changed, and every link signed anew by alice: what a careless or bribed grantor makes."""
    grants = [link.grant for link in made.links]
    grants[index] = replace(grants[index], **change)
    return chain(*grants)


# --- what holds ---


def test_a_root_and_a_chain_hold() -> None:
    assert says(chain(root())) == []
    assert says(three()) == []
    assert three().leaf.authority.paths[0].path == "/w/src/a"


def test_a_file_is_read_as_it_was_written() -> None:
    made = three()
    assert parse(dump(made)) == made
    assert dump(parse(dump(made))) == dump(made)
    jsonschema.validate(json.loads(dump(made)), SCHEMA)


def test_what_is_signed_is_independent_of_this_code() -> None:
    """Somebody who has the file and the documents only: the digest, the message and RFC 8032."""
    import hashlib

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    held = json.loads(dump(three()))
    digests = [
        hashlib.blake2b(
            json.dumps(link["grant"], sort_keys=True, separators=(",", ":")).encode(), digest_size=32
        ).hexdigest()
        for link in held["links"]
    ]
    for number, link in enumerate(held["links"], 1):
        signed = json.dumps({"chain": digests[:number], "schema": "remit.grant-proof/1"}, separators=(",", ":"))
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(link["key"]))
        key.verify(bytes.fromhex(link["signature"]), signed.encode())


def test_what_the_ledger_is_asked_for_a_chain() -> None:
    made = three()
    assert made.claims[0] == Claim(made.links[0].grant.id, 5, NOW - 10, NOW + 100)
    assert [claim.uses for claim in made.claims] == [5, 3, 1]
    assert made.ids == tuple(claim.id for claim in made.claims)
    assert made.expires == NOW + 50
    assert Claim(*made.claims[0].plain()) == made.claims[0]


@relaxed
@given(st.one_of(*(st.tuples(one, one) for one in (filesystems, networks, others))))
def test_what_narrow_makes_verifies_and_what_is_wider_does_not(pair: tuple[Authority, Authority]) -> None:
    inner, outer = pair
    above = root(outer)
    if leq(inner, outer):
        assert says(chain(above, above.narrow(inner))) == []
        return
    held = above.narrow(outer)
    forced = chain(
        above, replace(held, authority=replace(inner, deny=held.authority.deny, protect=held.authority.protect))
    )
    assert bool(says(forced)) == (not denotes(forced.leaf.authority) <= denotes(outer))


# --- what does not, each in two arms ---


def test_a_widened_child_is_refused_and_every_object_named() -> None:
    first = root()
    child = first.narrow(NARROW)
    assert says(chain(first, child)) == []
    wider = replace(child.authority, paths=reads("/etc", "/w").paths, listen=(22,), limits=(("pids", 11),))
    found = " ".join(says(chain(first, replace(child, authority=wider))))
    for part in ("read /etc", "listen 22", "11 is above"):
        assert part in found


def test_a_child_without_its_parents_denials_is_refused() -> None:
    first = root()
    child = first.narrow(NARROW)
    assert says(chain(first, child)) == []
    found = " ".join(says(chain(first, replace(child, authority=NARROW))))
    assert "deny of /w/.env" in found
    assert "protect of /w/**/.github" in found


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"expires": NOW + 101}, "expires"),
        ({"expires": None}, "expires: never"),
        ({"not_before": NOW - 11}, "not before"),
        ({"not_before": None}, "not before: any time"),
        ({"uses": 6}, "uses: 6"),
        ({"uses": None}, "uses: any number"),
        ({"grantor": "mallory"}, "grantor 'mallory'"),
        ({"parent": "0" * 32}, "its parent is"),
        ({"parent_digest": "0" * 64}, "parent's digest"),
    ],
)
def test_a_child_goes_beyond_its_parent_in_nothing(change: dict[str, Any], part: str) -> None:
    first = root(not_before=NOW - 10, expires=NOW + 100, uses=5)
    made = chain(first, first.narrow(NARROW))
    assert says(made) == []
    found = says(resigned(made, 1, **change))
    assert len(found) == 1
    assert part in found[0]


def test_a_child_of_a_bound_grant_stays_in_its_session() -> None:
    first = root(session="s1")
    made = chain(first, first.narrow(NARROW))
    assert made.leaf.session == "s1"
    assert says(made, session="s1") == []
    assert "belongs to session s1, not to session s2" in says(made, session="s2")[0]
    assert "belongs to session s1" in says(made, session="")[0]
    assert "is not the parent's s1" in says(resigned(made, 1, session="s2"), session="s2")[0]
    with pytest.raises(GrantError, match="session: s2"):
        first.narrow(NARROW, session="s2")
    assert says(chain(root()), session="s2") == []


def test_a_grant_is_its_principals() -> None:
    made = chain(root(principal="tool"))
    assert says(made, principal="tool") == []
    assert "given to 'tool', not to 'other'" in says(made, principal="other")[0]


def test_the_period_is_every_links() -> None:
    made = three()
    assert [bool(says(made, at=at)) for at in (NOW - 11, NOW - 10, NOW + 49.9, NOW + 50, NOW + 100)] == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert len(says(made, at=NOW + 100)) == 3
    assert "not in force before" in says(made, at=NOW - 11)[0]


def test_the_depth_is_bounded() -> None:
    grants = [root()]
    while len(grants) < MAX_DEPTH:
        grants.append(grants[-1].narrow(grants[-1].authority))
    assert says(chain(*grants)) == []
    grants.append(grants[-1].narrow(grants[-1].authority))
    assert "longer than 8" in says(chain(*grants))[0]


def test_an_id_stands_in_a_chain_once() -> None:
    first = root()
    child = first.narrow(NARROW)
    assert says(chain(first, child)) == []
    found = says(chain(first, replace(child, id=first.id)))
    assert "twice" in found[0]


def test_a_chain_without_its_root_is_refused() -> None:
    made = three()
    cut = chain(*(link.grant for link in made.links[1:]))
    assert says(made) == []
    assert "the root is taken out of grant" in says(cut)[0]


# --- keys ---


def test_an_unknown_key_is_refused() -> None:
    made = chain(root(), keys=(MALLORY,))
    assert "is not known here" in says(made)[0]
    assert says(made, Trusted({MALLORY.public: ""})) == []


def test_a_forged_signature_is_refused() -> None:
    made = chain(root())
    forged = MALLORY.add(made.leaf).links[0].signature
    assert says(made) == []
    assert "signature does not match" in says(Chain((replace(made.links[0], signature=forged),)))[0]
    assert "signature does not match" in says(Chain((Signed(made.leaf, ALICE.public, "0" * 128),)))[0]


def test_a_key_that_is_no_point_of_the_curve_signed_nothing() -> None:
    made = chain(root())
    for key in ("f" * 64, "0" * 64, "02" + "0" * 62):
        assert says(Chain((replace(made.links[0], key=key),)), Trusted({key: ""}))


def test_a_signature_serves_no_other_place() -> None:
    """The same grant below another parent, or as a root, needs another signature."""
    first = root()
    child = replace(first, id="1" * 32, grantor="agent")
    above = chain(first)
    below = ALICE.add(child, above)
    assert "signature does not match" in says(Chain((below.links[1],)))[0]
    assert any("signature does not match" in one for one in says(Chain((below.links[1], *above.links))))


def test_a_key_holder_narrows_what_it_was_given_and_nobody_else_does() -> None:
    first = root(principal=f"key:{BOB.public}")
    child = first.narrow(NARROW, principal="tool")
    grand = child.narrow(reads_below(child))
    assert says(chain(first, child, keys=(ALICE, BOB))) == []
    assert says(chain(first, child, grand, keys=(ALICE, BOB, BOB))) == []
    assert says(chain(first, child, grand, keys=(ALICE, BOB, ALICE))) == []
    assert "not its grantor" in says(chain(first, child, keys=(ALICE, MALLORY)))[0]
    assert "not its grantor" in says(chain(first, child, keys=(ALICE, ALICE)))[0]
    assert "is not known here" in says(chain(first, child, grand, keys=(ALICE, BOB, MALLORY)))[0]


def test_a_stranger_narrows_nothing() -> None:
    first = root()
    child = first.narrow(NARROW)
    assert says(chain(first, child, keys=(ALICE, ALICE))) == []
    assert "is not known here" in says(chain(first, child, keys=(ALICE, BOB)))[0]


def test_a_key_that_roots_name_has_to_have_signed_them() -> None:
    made = root(grantor=f"key:{BOB.public}")
    both = Trusted({ALICE.public: "", BOB.public: ""})
    assert says(chain(made, keys=(BOB,)), both) == []
    assert "not its grantor" in says(chain(made, keys=(ALICE,)), both)[0]


# --- tampering ---

FIELDS = st.sampled_from(
    [
        {"id": "1" * 32},
        {"grantor": "mallory"},
        {"principal": "mallory"},
        {"task": "other"},
        {"purpose": "other"},
        {"authority": WIDE},
        {"authority": reads("/")},
        {"authority": Authority()},
        {"not_before": None},
        {"not_before": NOW - 10.5},
        {"expires": None},
        {"expires": NOW + 7},
        {"uses": None},
        {"uses": 2},
        {"session": "s"},
        {"parent": None, "parent_digest": None},
        {"parent": "2" * 32, "parent_digest": "3" * 64},
    ]
)
TAMPERED = three()


@relaxed
@given(st.integers(0, 2), FIELDS)
def test_any_changed_field_is_found(index: int, change: dict[str, Any]) -> None:
    links = list(TAMPERED.links)
    changed = replace(links[index].grant, **change)
    links[index] = replace(links[index], grant=changed)
    found = says(Chain(tuple(links)))
    assert bool(found) == (changed != TAMPERED.links[index].grant)


@relaxed
@given(st.permutations(range(3)), st.integers(1, 3))
def test_links_left_out_or_in_another_order_are_found(order: list[int], count: int) -> None:
    links = tuple(TAMPERED.links[i] for i in order[:count])
    # A prefix of a chain is a chain: the grant that a narrower one was taken out of.
    assert bool(says(Chain(links))) == (order[:count] != list(range(count)))


FILE = dump(TAMPERED)


@settings(deadline=None, max_examples=600)
@given(st.integers(0, len(FILE) * 8 - 1))
def test_any_single_bit_of_a_file_is_found(bit: int) -> None:
    changed = bytearray(FILE)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(GrantError):
        verify(parse(bytes(changed)), KNOWN, at=NOW)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80), st.integers(0, len(FILE)), st.integers(0, 40))
def test_whatever_is_in_a_file_is_read_or_refused(junk: bytes, at: int, cut: int) -> None:
    data = FILE[:at] + junk + FILE[at + cut :]
    try:
        made = parse(data)
    except GrantError:
        return
    assert dump(made) == data


# --- the file's form ---


def test_there_are_more_than_thirty_bad_files() -> None:
    assert len(BAD) > 30


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_file_is_one_error(path: Path) -> None:
    expected, _, data = path.read_bytes().partition(b"\n")
    with pytest.raises(GrantError) as caught:
        parse(data)
    fragment = expected.removeprefix(b"expect: ").decode()
    assert fragment in f"{caught.value} {caught.value.hint}"
    assert caught.value.exit_status == 2


def test_the_bad_files_differ_from_a_good_one_by_what_they_are_named_for() -> None:
    """The other arm: what they were made of is read, and holds."""
    good = (BAD[0].parent.parent / "good.json").read_bytes()
    made = parse(good)
    assert says(made) == []
    jsonschema.validate(json.loads(good), SCHEMA)


def test_the_schema_is_as_strict_as_the_reader() -> None:
    for stem in ("unknown-key", "link-unknown-key", "no-links", "signature-short", "key-upper", "grant-unknown-key"):
        data = (BAD[0].parent / f"{stem}.json").read_bytes().partition(b"\n")[2]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(data), SCHEMA)


# --- purity ---


def test_the_proof_imports_no_cryptography() -> None:
    code = "import sys; sys.path[:0] = sys.argv[1:]; import remit.sandbox.authority.proof; print(*sys.modules)"
    result = run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT / "src")], capture_output=True, text=True, check=True
    )
    modules = set(result.stdout.split())
    assert "remit.sandbox.authority.proof" in modules
    assert modules.isdisjoint({"cryptography", "subprocess", "socket", "ctypes", "remit.sandbox.session"})


def test_a_chain_has_a_grant_and_a_link_a_key() -> None:
    with pytest.raises(GrantError, match="without a grant"):
        Chain(())
    with pytest.raises(GrantError, match="64 hexadecimal"):
        Signed(root(), "x", "0" * 128)
    assert proof.message([root(id="0" * 32)]) != proof.message([root(id="1" * 32)])
    assert isinstance(chain(root()).leaf, Grant)
