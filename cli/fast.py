"""The command's front door: ``remit run`` with plain options goes straight to the session; all else goes to click.

click alone costs more than a whole confined start, so this module imports nothing but the option table, and leaves by
``_exit``: finalising the interpreter costs as much as building the sandbox.
"""

import gc
import posix
import sys

from remit.cli import options

BUNDLE = f"{__file__.rpartition('/')[0]}/__pycache__/run.{sys.implementation.cache_tag}.bundle"
"""The hot path's modules in one file (``remit.cli.bundle`` makes it)."""
_LAST = "remit.sandbox.session.oneshot"
"""The module that is imported only once all of them are."""
_STAGE = "remit.sandbox.launch.stage"


def parse(argv: list[str]) -> options.Invocation | None:
    """Parse the words after ``remit run``. ``None``: anything unusual (``--help``, any error), which click explains."""
    invocation, errors = options.parse("run", argv)
    return None if errors else invocation


def main(argv: list[str]) -> None:
    """Run the ``remit`` command with the words after its name, and end the process with its exit status."""
    status = 125
    try:
        _fill_standard_descriptors()
        invocation = parse(argv[1:]) if argv[:1] == ["run"] else None
        if invocation is not None:
            status = start(invocation)
        else:
            libraries()
            from remit.cli import output
            from remit.cli.main import run

            output.install()
            status = run(argv)
            output.flush()
    except BaseException as error:
        from remit.cli import fail

        status = fail.report(error)
    _give_up()
    _leave(status)


def _fill_standard_descriptors() -> None:
    """A closed 0, 1 or 2 becomes /dev/null: the next thing that Remit opens would get its number, and the command with it."""
    for number in (0, 1, 2):
        try:
            posix.fstat(number)
        except OSError:
            posix.open("/dev/null", posix.O_RDWR)


def use_bundle() -> bool:
    """Import the hot path's modules from the bundle. False where there is none that can be trusted."""
    if _LAST in sys.modules:
        return True  # the stub has done it
    from remit.cli import loader

    found = loader.read(BUNDLE)
    if found is None:
        return False
    try:
        return loader.install(*found)
    finally:
        posix.close(found[0])


def start(invocation: options.Invocation) -> int:
    """Hand a parsed ``remit run`` to the session. The one place where the CLI enters it."""
    # Nothing of the launcher's makes cycles, and a collection touches every page that the fork would share.
    gc.disable()
    if use_bundle():
        from remit.sandbox.session import oneshot

        return oneshot.run(invocation, libraries)
    _begin()
    from remit.sandbox.session import oneshot

    if not posix.access(BUNDLE.rpartition("/")[0], posix.W_OK):
        return oneshot.run(invocation, libraries)
    __import__(_STAGE)
    names = loaded()
    try:
        return oneshot.run(invocation, libraries)
    finally:
        from remit.cli import bundle

        bundle.write(names)


def _begin() -> None:
    """What ``loader.begin`` does for a bundle: the session's first process starts before its plan is known."""
    from remit.sandbox.launch import early

    if posix.geteuid():
        early.begin(lambda: __import__(_STAGE))
    early.otherwise(lambda: __import__(_STAGE))


def loaded() -> list[str]:
    """The modules that a bundle made now would hold."""
    return [name for name in sys.modules if name.partition(".")[0] == "remit" and name != "remit.cli.loader"]


def libraries() -> None:
    """Make third-party packages importable: wanted where click is, and where a plan has to be compiled."""
    from remit.cli import boot

    boot.dependencies()


def _give_up() -> None:
    """End the first process that was begun for a command which did not come to that."""
    early = sys.modules.get("remit.sandbox.launch.early")
    if early is not None:
        early.give_up()


def _leave(status: int) -> None:
    """Flush and leave at once. What could not be written of standard output has been told by now (``remit.cli.output``)."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except Exception:
            pass
    posix._exit(status)  # pyright: ignore[reportPrivateUsage]  # os would be an import
