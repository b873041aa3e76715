"""The command's front door: ``remit run`` with plain options goes straight to the session; all else goes to click.

click alone costs more than a whole confined start, so this module imports nothing but the option table, and leaves by
``_exit``: finalising the interpreter costs as much as building the sandbox.
"""

import posix
import sys

from remit.cli import options


def parse(argv: list[str]) -> options.Invocation | None:
    """Parse the words after ``remit run``. ``None``: anything unusual (``--help``, any error), which click explains."""
    invocation, errors = options.parse("run", argv)
    return None if errors else invocation


def main(argv: list[str]) -> None:
    """Run the ``remit`` command with the words after its name, and end the process with its exit status."""
    status = 125
    try:
        invocation = parse(argv[1:]) if argv[:1] == ["run"] else None
        if invocation is not None:
            status = start(invocation)
        else:
            libraries()
            from remit.cli.main import run

            status = run(argv)
    except BaseException as error:
        from remit.cli import fail

        status = fail.report(error)
    _leave(status)


def start(invocation: options.Invocation) -> int:
    """Hand a parsed ``remit run`` to the session. The one place where the CLI enters it."""
    from remit.cli import bundle

    bundled = bundle.use()
    from remit.sandbox.session import oneshot

    if bundled:
        return oneshot.run(invocation, libraries)
    names = bundle.loaded()
    try:
        return oneshot.run(invocation, libraries)
    finally:
        bundle.write(names)


def libraries() -> None:
    """Make third-party packages importable: wanted where click is, and where a plan has to be compiled."""
    from remit.cli import boot

    boot.dependencies()


def _leave(status: int) -> None:
    """Flush and leave at once. What cannot be written (a closed pipe) is not a failure of the command's."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass
    posix._exit(status)  # pyright: ignore[reportPrivateUsage]  # os would be an import
