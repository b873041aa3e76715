"""Make the rest of Remit importable in an isolated interpreter, without running anything that is not Remit's own.

The command is ``python -I -S``: no ``PYTHONPATH``, no ``sitecustomize``, no ``.pth`` file, no current directory. The
stub (``remit.sh``) appends what it needs to find ``remit``; this module appends where the libraries that a plain
``remit run`` does without are (click, rich, tomli ...), always *after* the standard library, so that nothing there
can stand in for a module of Python's own.
"""

import sys

ISOLATED = ("-I", "-S", "-X", "utf8")

AGAIN = "import sys; sys.path.append(sys.argv.pop(1)); from remit.cli.fast import main; main(sys.argv[1:])"
"""What ``python -m remit`` becomes: the same interpreter, isolated, with the directory that holds ``remit``."""


def dependencies() -> None:
    """Append the site directories of this installation to ``sys.path`` (``.pth`` files in them are never read)."""
    import os.path

    for directory in site_directories(sys.executable, sys.base_prefix):
        if directory not in sys.path and os.path.isdir(directory):
            sys.path.append(directory)


def site_directories(executable: str, base_prefix: str) -> list[str]:
    """Where this interpreter's third-party packages are: the virtual environment's, or else the system's.

    With ``-S`` nothing has looked for ``pyvenv.cfg``: ``sys.prefix`` is the base installation's, so the environment is
    found from the interpreter's own path, as ``site`` would (PEP 405).
    """
    import os.path

    prefix = os.path.dirname(os.path.dirname(executable))
    configuration = os.path.join(prefix, "pyvenv.cfg")
    found = _below(prefix)
    if os.path.isfile(configuration):
        with open(configuration, encoding="utf-8", errors="replace") as lines:
            settings = {
                key.strip().lower(): value.strip().lower() for key, _, value in (x.partition("=") for x in lines)
            }
        if settings.get("include-system-site-packages") != "true":
            return found
    elif prefix != "/usr/local":
        found = [*_below("/usr/local"), *found] if prefix == "/usr" else found
    return [*found, *_below(base_prefix)]


def _below(prefix: str) -> list[str]:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return [
        f"{prefix}/{library}/{python}/{packages}"
        for library in ("lib", "lib64")
        for python, packages in ((version, "site-packages"), (version, "dist-packages"), ("python3", "dist-packages"))
    ]
