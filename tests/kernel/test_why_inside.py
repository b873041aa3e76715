"""What was denied, asked from inside: told to whoever it was denied to, with nothing there that could be changed."""

from __future__ import annotations

import pytest

from remit import Grant
from tests.kernel.run_harness import World
from tests.kernel.session_harness import opened, said
from tests.kernel.test_run_audit import profile, record

pytestmark = [pytest.mark.kernel, pytest.mark.needs(userns=True, landlock=6)]
ASK = "cat <>/.remit/why"
NOTHING = "The sandbox has denied nothing here that it saw."


@pytest.mark.parametrize("level", ["writes", "full"])
def test_a_denial_is_told_with_its_rule_its_line_and_what_to_ask_for(world: World, level: str) -> None:
    secret, outside = world.workspace / "secret", world.home / "other"
    world.give(outside).write_text("x")
    path = world.home / f".config/remit/profiles/audit-{level}.toml"
    name = profile(world, level)
    path.write_text(path.read_text() + f'[filesystem]\ndeny = ["{secret}"]\n')
    options = ["-p", name, "--read", str(outside)]

    assert world.run("sh", "-c", ASK, options=options).stdout.startswith(NOTHING)  # the control
    result = world.run("sh", "-c", f"echo x > {secret}; echo x > {outside}; {ASK}", options=options)

    latest, first = (part.splitlines() for part in result.stdout.split("\n\n"))
    assert latest[0].startswith(f"Denied by the sandbox: write {outside} by /usr/bin/")
    assert latest[0].endswith("nothing grants it (whether it would work without the sandbox is not known in here).")
    assert latest[2].startswith(
        f"If the task needs it, ask the user to grant: --write {outside} (if it is not there yet, "
    )
    assert f"the rule {secret} takes it away ({path}:" in first[0]
    assert "trying again" in first[1]
    assert len(latest) == len(first) == 3
    # As the option says; and to ask was no action of its own.
    granted = world.run("sh", "-c", f"echo x > {outside}; {ASK}", options=[*options, "--write", str(outside)])
    assert granted.stdout.startswith(NOTHING)
    assert not [line for line in record(world) if "/.remit" in str(line.get("object", ""))]


def test_what_is_not_noted_is_not_said_to_be_nothing(world: World) -> None:
    result = world.run("sh", "-c", f"echo x > /etc/nope; {ASK}", options=["-p", profile(world, "off")])
    assert result.stdout.endswith("what was denied is not known.\n")


def test_there_is_nothing_to_change_remove_or_forge(world: World) -> None:
    script = f"""
    echo x > /etc/nope
    echo forged > /.remit/why
    ls /.remit
    rm /.remit/why
    mv /.remit/why /tmp/why
    ln -s /etc /tmp/.remit
    mkdir -p /.remit
    exec 3<>/.remit/why
    echo forged >&3
    {ASK}
    """
    result = world.run("sh", "-c", script)

    assert "forged" not in result.stdout
    assert "write /etc/nope" in result.stdout
    assert "cannot access '/.remit'" in result.stderr
    assert result.stderr.count("/.remit/why': No such file") == 2


def test_a_call_hears_of_its_own_denials_only(world: World) -> None:
    with opened(world) as session:
        own = Grant(read=["."])
        first = said(session.run(["sh", "-c", f"echo x > made; {ASK}"], grant=own))
        assert "Denied by the sandbox: write" in first
        assert "--write" in first
        for grant in (own, None, Grant(write=["."])):
            for _ in range(3):
                assert said(session.run(["sh", "-c", ASK], grant=grant)).startswith(NOTHING)
        many = "for n in 1 2 3 4 5 6 7 8 9 10; do echo x > made$n; done"
        told = said(session.run(["sh", "-c", f"{many}; {ASK}"], grant=own))
        assert "made10" in told
        assert "made1 " not in told
        assert told.count("Denied by the sandbox") == 8
