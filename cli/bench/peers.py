"""Other sandboxes, asked for the same: system directories to read, the workspace to write, no network, one command.

Whoever has no way to be asked for some of that is asked for what comes nearest. No peer is installed by this, none gets a
network, and none can read this user's settings of it where it takes another directory for them.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from remit.cli.bench.measure import BWRAP, Command
from remit.cli.bench.setting import Setting

Wrap = Callable[[str, tuple[str, ...]], Command]
"""From a workspace and a command with an absolute path to what runs it confined."""

_SYSTEM = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64")
_REFUSED = ("kexec_load", "mount", "umount2", "unshare", "setns", "ptrace", "keyctl", "add_key", "bpf", "reboot")
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")
_SANDLOCK = """
import os, sys
from sandlock import Sandbox
workspace, *argv = sys.argv[1:]
system = [path for path in ("/usr", "/etc", "/bin", "/lib", "/lib64", "/proc", "/dev") if os.path.exists(path)]
raise SystemExit(Sandbox(fs_readable=system, fs_writable=[workspace], cwd=workspace).run_interactive(argv))
"""
_NONO = """
import os, sys
from nono_py import AccessMode, CapabilitySet, sandboxed_exec
workspace, *argv = sys.argv[1:]
granted = CapabilitySet()
for path in ("/usr", "/etc", "/bin", "/lib", "/lib64", "/proc", "/dev"):
    if os.path.exists(path):
        granted.allow_path(path, AccessMode.READ)
granted.allow_path(workspace, AccessMode.READ_WRITE)
granted.block_network()
done = sandboxed_exec(granted, argv, cwd=workspace)
sys.stdout.buffer.write(done.stdout)
sys.stderr.buffer.write(done.stderr)
raise SystemExit(done.exit_code)
"""


def find(setting: Setting) -> tuple[dict[str, Wrap], dict[str, str]]:
    """The peers that are installed, and why each other one is not measured."""
    found: dict[str, Wrap] = {}
    missing: dict[str, str] = {}
    for name, program, make in _PROGRAMS:
        path = setting.program(program)
        if path is None:
            missing[name] = "not installed"
        else:
            found[name] = make(setting, path)
    for name, package, script in (("sandlock (Python)", "sandlock", _SANDLOCK), ("nono (Python)", "nono_py", _NONO)):
        interpreter = _interpreter(setting, package)
        if interpreter is None:
            missing[name] = "not installed"
        else:
            found[name] = _python(setting, interpreter, script)
    return found, missing


def _bubblewrap(setting: Setting, path: str) -> Wrap:
    return lambda workspace, argv: setting.wrapped(workspace, *argv)


def _firejail(setting: Setting, path: str) -> Wrap:
    alone = ("--net=none", "--private-tmp", "--private-dev", "--ipc-namespace")
    less = ("--caps.drop=all", "--nonewprivs", "--noroot", "--seccomp")
    head = (path, "--quiet", "--noprofile", *alone, *less, "--read-only=/")
    return lambda workspace, argv: setting.command(workspace, *head, f"--read-write={workspace}", "--", *argv)


def _nsjail(setting: Setting, path: str) -> Wrap:
    tree = [word for directory in (*_SYSTEM, *_DEVICES) if os.path.exists(directory) for word in ("-R", directory)]
    # Its language has no such name.
    names = [name for name in _REFUSED if name != "umount2"]
    refused = f"ERRNO(1) {{ {', '.join(names)} }} DEFAULT ALLOW"
    limits = ("--disable_rlimits", "-t", "0", "--seccomp_string", refused)
    head = (path, "-Mo", "-Q", "-e", *tree, "-T", "/tmp")
    return lambda workspace, argv: setting.command(
        workspace, *head, "-B", workspace, "--cwd", workspace, *limits, "--", *argv
    )


def _minijail(setting: Setting, path: str) -> Wrap:
    # A change of root, not a pivot: without a /proc in sight the kernel lets no ordinary user mount another.
    spaces = ("-T", "static", "-n", "-U", "-m", "-M", "-v", "-p", "-e", "-l", "--uts")
    tree = [word for directory in _SYSTEM if os.path.exists(directory) for word in ("-b", directory)]

    def wrap(workspace: str, argv: tuple[str, ...]) -> Command:
        root = f"{setting.base}/minijail-{len(os.listdir(setting.base))}"
        for directory in (*_SYSTEM, "/proc", "/tmp", workspace):
            os.makedirs(root + directory)
        own = (f"--seccomp-bpf-binary={setting.filter}", "-C", root, *tree, "-t", "-b", f"{workspace},{workspace},1")
        return setting.command(workspace, path, *spaces, *own, "--", *argv)

    return wrap


def _crun(setting: Setting, path: str) -> Wrap:
    return lambda workspace, argv: _container(setting, (path, "--cgroup-manager=disabled"), "crun", workspace, argv)


def _runc(setting: Setting, path: str) -> Wrap:
    return lambda workspace, argv: _container(setting, (path,), "runc", workspace, argv)


def _container(setting: Setting, runtime: tuple[str, ...], name: str, workspace: str, argv: tuple[str, ...]) -> Command:
    """A bundle for an OCI runtime: a root of mount points and links, the system bound read-only, no network."""
    bundle = f"{setting.base}/{name}-{len(os.listdir(setting.base))}"
    root = f"{bundle}/rootfs"
    for directory in ("usr", "etc", "proc", "dev", "tmp", workspace.lstrip("/")):
        os.makedirs(f"{root}/{directory}", exist_ok=True)
    for link in ("bin", "sbin", "lib", "lib64"):
        os.symlink(f"usr/{link}", f"{root}/{link}")
    read_only = ["rbind", "ro", "nosuid"]
    mounts: list[dict[str, object]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
        {"destination": "/usr", "type": "bind", "source": "/usr", "options": read_only},
        {"destination": "/etc", "type": "bind", "source": "/etc", "options": read_only},
        {"destination": workspace, "type": "bind", "source": workspace, "options": ["rbind", "rw", "nosuid"]},
    ]
    user, group = os.geteuid(), os.getegid()
    spaces = ["pid", "network", "ipc", "uts", "mount"]
    linux: dict[str, object] = {
        "namespaces": [{"type": space} for space in spaces],
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": list(_REFUSED), "action": "SCMP_ACT_ERRNO"}],
        },
    }
    if user != 0:
        linux["namespaces"] = [{"type": space} for space in [*spaces, "user"]]
        # As rootless containers are: runc wants a root inside, which this user is outside.
        linux["uidMappings"] = [{"containerID": 0, "hostID": user, "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": group, "size": 1}]
    configuration = {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(argv),
            "env": [f"{key}={value}" for key, value in setting.environment.items()],
            "cwd": workspace,
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": mounts,
        "linux": linux,
    }
    Path(f"{bundle}/config.json").write_text(json.dumps(configuration), encoding="utf-8")
    state = ("--root", f"{setting.base}/{name}-state")
    return setting.command(workspace, *runtime, *state, "run", "--bundle", bundle, os.path.basename(bundle))


def _codex(setting: Setting, path: str) -> Wrap:
    home = f"{setting.base}/codex"
    os.makedirs(home, exist_ok=True)
    head = (path, "sandbox", "-c", 'sandbox_mode="workspace-write"', "--")

    def wrap(workspace: str, argv: tuple[str, ...]) -> Command:
        command = setting.command(workspace, *head, *argv)
        return replace(command, environment={**command.environment, "CODEX_HOME": home})

    return wrap


def _srt(setting: Setting, path: str) -> Wrap:
    return lambda workspace, argv: setting.command(workspace, *_srt_head(setting, path, workspace, ()), *argv)


def _srt_head(setting: Setting, path: str, workspace: str, domains: tuple[str, ...]) -> tuple[str, ...]:
    settings = f"{setting.base}/srt-{len(os.listdir(setting.base))}.json"
    writes: dict[str, list[str]] = {"denyRead": [], "allowWrite": [workspace], "denyWrite": []}
    asked = {"network": {"allowedDomains": list(domains), "deniedDomains": list[str]()}, "filesystem": writes}
    Path(settings).write_text(json.dumps(asked), encoding="utf-8")
    return path, "-s", settings


def proxied(setting: Setting, workspace: str, domain: str) -> tuple[tuple[str, ...], str]:
    """What runs a command under srt with its proxy as the way to ``domain``; or nothing, and why that cannot be."""
    missing = [name for name in ("srt", "bwrap", "socat", "rg") if setting.program(name) is None]
    path = setting.program("srt")
    if missing or path is None:
        return (), f"not installed: {', '.join(missing)}"
    return _srt_head(setting, path, workspace, (domain,)), ""


def _interpreter(setting: Setting, package: str) -> str | None:
    """The first interpreter on the search path that has the package, found without starting any."""
    for directory in setting.environment["PATH"].split(os.pathsep):
        interpreter = f"{directory}/python3"
        if os.access(interpreter, os.X_OK) and glob.glob(
            f"{glob.escape(os.path.dirname(directory))}/lib*/python3*/*-packages/{package}"
        ):
            return interpreter
    return None


def _python(setting: Setting, interpreter: str, script: str) -> Wrap:
    return lambda workspace, argv: setting.command(workspace, interpreter, "-I", "-c", script, workspace, *argv)


_PROGRAMS: tuple[tuple[str, str, Callable[[Setting, str], Wrap]], ...] = (
    (BWRAP, "bwrap", _bubblewrap),
    ("firejail", "firejail", _firejail),
    ("crun", "crun", _crun),
    ("runc", "runc", _runc),
    ("nsjail", "nsjail", _nsjail),
    ("minijail", "minijail0", _minijail),
    ("srt", "srt", _srt),
    ("codex sandbox", "codex", _codex),
)
