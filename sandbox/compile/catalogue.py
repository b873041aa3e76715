"""The auto-exec catalogue: files that something outside a session executes without being asked to.

A file belongs here when a tool that people leave running, or start for another reason (git, an editor, an agent, a
shell, a CI runner, an IDE's interpreter discovery), executes what the file says. It does not belong here when somebody
has to ask for it to be run: ``Makefile``, ``package.json``, ``conftest.py`` and ``.npmrc`` (which only changes what an
explicit ``npm`` does) are the project's own code, and an agent that may not write those may not work.

Data only. ``WIRE`` is what the plan carries to the mediator, because the mediator imports no compiler.

Left out on purpose: ``CLAUDE.md``, ``AGENTS.md`` (instructions, not code); ``.gitattributes`` and ``.gitmodules`` (they
can only name drivers and commands that the configuration defines); ``.git/rebase-merge/git-rebase-todo`` (git itself
must write it, and its ``exec`` lines run only on ``git rebase --continue``); ``*.code-workspace`` (opened by hand).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One catalogue name: ``tail`` components, the file or directory itself and everything below it.

    ``top``: only directly in a writable root (a forge reads its CI files there and nowhere else; packages are full of
    harmless copies). Otherwise at any depth, but for directories of installed packages (``PACKAGE_DIRECTORIES``).
    """

    tail: tuple[str, ...]
    reason: str
    top: bool = False


def _entries(reason: str, *paths: str, top: bool = False) -> tuple[Entry, ...]:
    return tuple(Entry(tuple(path.split("/")), reason, top) for path in paths)


ENTRIES: tuple[Entry, ...] = (
    *_entries("git applies drivers by it", ".git/info/attributes"),
    *_entries("hooks of hook managers run on commit", ".husky", ".lefthook.yml", "lefthook.yml", "lefthook.yaml"),
    *_entries("an installed pre-commit hook runs its commands", ".pre-commit-config.yaml"),
    *_entries(
        "an editor runs tasks, interpreters and servers that it names",
        ".vscode/tasks.json",
        ".vscode/settings.json",
        ".vscode/launch.json",
        ".vscode/mcp.json",
        ".idea",
        ".zed/settings.json",
        ".zed/tasks.json",
        ".zed/debug.json",
        ".fleet",
        ".devcontainer",
        ".devcontainer.json",
        ".exrc",
        ".nvimrc",
        ".nvim.lua",
        ".lvimrc",
        ".vimrc",
        ".dir-locals.el",
    ),
    *_entries(
        "a coding agent runs hooks, servers and commands that it names, or takes its permissions from it",
        ".claude/settings.json",
        ".claude/settings.local.json",
        ".claude/hooks",
        ".claude/commands",
        ".claude/agents",
        ".claude/skills",
        ".claude/plugins",
        ".mcp.json",
        ".cursor",
        ".codex",
        ".gemini",
        ".agents",
        ".github/hooks",
        ".windsurf",
        ".continue",
        ".kiro",
        ".roo",
        ".amazonq",
        ".opencode",
        "opencode.json",
        "opencode.jsonc",
        ".aider.conf.yml",
    ),
    *_entries(
        "a shell or session runs it when it starts, or when somebody enters the directory",
        ".bashrc",
        ".bash_profile",
        ".bash_login",
        ".bash_logout",
        ".bash_aliases",
        ".profile",
        ".zshrc",
        ".zshenv",
        ".zprofile",
        ".zlogin",
        ".zlogout",
        ".kshrc",
        ".cshrc",
        ".tcshrc",
        ".login",
        ".xprofile",
        ".xinitrc",
        ".xsession",
        ".xsessionrc",
        ".envrc",
        ".config/fish",
        ".config/autostart",
        ".config/systemd",
        ".config/environment.d",
        ".config/nvim",
        ".config/git",
        ".gitconfig",
        ".ssh/rc",
        ".ssh/config",
        ".ssh/environment",
        ".ssh/authorized_keys",
        ".pam_environment",
        ".tmux.conf",
        ".screenrc",
        ".gdbinit",
        ".lldbinit",
        ".pdbrc",
        ".Rprofile",
        ".irbrc",
    ),
    *_entries(
        "a CI runner executes it with the project's secrets",
        ".github/workflows",
        ".github/actions",
        ".gitlab-ci.yml",
        ".circleci",
        ".travis.yml",
        ".drone.yml",
        ".buildkite",
        ".woodpecker.yml",
        ".woodpecker.yaml",
        ".woodpecker",
        ".gitea/workflows",
        ".forgejo/workflows",
        "azure-pipelines.yml",
        "bitbucket-pipelines.yml",
        "appveyor.yml",
        ".appveyor.yml",
        "cloudbuild.yaml",
        "Jenkinsfile",
        top=True,
    ),
)

HOOKS: tuple[str, ...] = (
    # githooks(5), every version: *.sample and other names are never run.
    "applypatch-msg",
    "pre-applypatch",
    "post-applypatch",
    "pre-commit",
    "pre-merge-commit",
    "prepare-commit-msg",
    "commit-msg",
    "post-commit",
    "pre-rebase",
    "post-checkout",
    "post-merge",
    "pre-push",
    "pre-receive",
    "update",
    "proc-receive",
    "post-receive",
    "post-update",
    "reference-transaction",
    "push-to-checkout",
    "pre-auto-gc",
    "post-rewrite",
    "sendemail-validate",
    "fsmonitor-watchman",
    "p4-changelist",
    "p4-prepare-changelist",
    "p4-post-changelist",
    "p4-pre-submit",
    "post-index-change",
)
"""Names that git runs, in the ``hooks`` directory of any git directory, whatever that directory is called.

A directory is a git directory when it holds both ``objects`` and ``refs`` (git's own test, ``is_git_directory``; a
linked worktree's or a ``.git`` file's target is followed to one that does), or when its name is ``.git``. So bare
repositories, ``modules/*`` and ``gitdir:`` pointers need no rule of their own. Its ``config`` may be written only by a
rename, as git does, and only with keys of ``remit.sandbox.mediate.gitconfig``.
"""

INTERPRETERS: tuple[str, ...] = ("python", "python3", *(f"python3.{minor}" for minor in range(7, 20)), "pypy", "pypy3")
"""Names in a directory called ``bin`` or ``Scripts`` that editors execute to find out what they are.

They may be made only as symbolic links to an interpreter outside every writable root, or to another of these names
beside them: ``python -m venv``, virtualenv and uv do just that. Existing ones cannot be written or replaced by anything
else; removing them is allowed, so that an environment can be made anew. An environment of *copies* (``venv --copies``,
conda) cannot be made inside without opening it by name. What the interpreter imports (``site-packages``, ``*.pth``,
``pyvenv.cfg``) stays writable: it is the project's own code, like ``conftest.py``.
"""

PACKAGE_DIRECTORIES: tuple[str, ...] = ("node_modules", "site-packages", "dist-packages")
"""Below these, ``ENTRIES`` of any depth do not hold: packages ship editor and agent settings that nobody opens."""

WIRE: tuple[tuple[str, ...], ...] = (
    *(("top" if entry.top else "any", *entry.tail) for entry in ENTRIES),
    *(("hook", name) for name in HOOKS),
    *(("interpreter", name) for name in INTERPRETERS),
    *(("package", name) for name in PACKAGE_DIRECTORIES),
)
"""The catalogue as the plan carries it: a kind (``any``, ``top``, ``hook``, ``interpreter``, ``package``) and names."""


def opens(path: str) -> bool:
    """Whether granting this very ``path`` (absolute, canonical) by name opens the catalogue for it and what is below it.

    It must *be* a catalogue name or a directory that holds nothing else (``.git/hooks``, ``.vscode``): a grant of a project
    does not open the hooks in it, nor does one of a whole ``.git``.
    """
    names = tuple(path.strip("/").split("/"))
    if names[-2:] == (".git", "hooks") or names[-3:-1] == (".git", "hooks"):
        return True
    if names[-1] in INTERPRETERS and names[-2:-1] in (("bin",), ("Scripts",)):
        return True
    for entry in ENTRIES:
        for length in range(1, len(entry.tail) + 1):
            if names[-length:] == entry.tail[:length] and names[-length:] != (".git",):
                return True
    return False
