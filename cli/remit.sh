#!/bin/sh
# The `remit` command. A console script would read PYTHONPATH, sitecustomize and .pth files, and look for modules in the
# current directory, before any line of Remit runs; this stub starts the interpreter beside it isolated instead, and
# names the one directory that holds Remit. Written to fork nothing when it is run by an absolute path, as from PATH.
self=$0
while [ -L "$self" ]; do # pipx and uv link to the environment's own bin directory
	link=$(readlink -- "$self") || exit 125
	case $link in
	/*) self=$link ;;
	*) self=${self%"${self##*/}"}$link ;;
	esac
done
bin=${self%"${self##*/}"}
case $self in
[!/]* | */./* | */../*) bin=$(cd -P -- "${bin:-.}" && pwd -P)/ || exit 125 ;;
esac
python=${bin}python3
[ -x "$python" ] || python=/usr/bin/python3
# Python does not start with a directory as a standard stream, and a command could walk on from it.
[ -d /dev/stdin ] && exec </dev/null
if [ -d /dev/stdout ] || [ -d /dev/stderr ]; then
	printf 'remit: error: %s\nremit: hint: %s\n' 'standard output or error is a directory' 'redirect it to a file or a pipe' >&2
	exit 125
fi
# A bundle of what a plain `remit run` imports is used where it may be (remit/cli/loader.py): the first text below, which is
# compiled at each start and is short therefore. Else the second finds `remit`: first in its own prefix; then, for an editable
# install, by the one path in _remit.pth, read as data. Directories go *after* the standard library: nothing in them can
# replace a module of Python's own. (Remit's own package, which imports nothing, is looked up in its one directory alone: that
# saves a look into three others.)
exec "$python" -I -S -X utf8 -c '
import posix, sys
prefix = sys.argv[1].rstrip("/").rpartition("/")[0]
site = prefix + "/lib/python%d.%d/site-packages" % sys.version_info[:2]
bundle, begun, loader = -1, False, {}
if sys.argv[3:4] == ["run"]:
    try:
        from marshal import loads
        bundle = posix.open("%s/remit/cli/__pycache__/run.%s.bundle" % (site, sys.implementation.cache_tag),
                            posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
        status = posix.fstat(bundle)
        if status.st_uid in (0, posix.geteuid()) and not status.st_mode & 0o022:
            code, content = loads(posix.read(bundle, 131072))
            exec(code, loader)
            begun = loader["begin"](bundle, content)
    except (OSError, ValueError, EOFError, TypeError, KeyError):
        pass  # there is none, it is damaged, or another version left it
    if bundle >= 0:
        posix.close(bundle)
if begun:
    sys.path.append(site)
else:
    exec(sys.argv[2])
from remit.cli.fast import main
main(sys.argv[3:])
' "$bin" '
standard = sys.path[:]
sys.path[:] = [site]
try:
    import remit
except ImportError:
    sys.path[:0] = standard
    version = "python%d.%d" % sys.version_info[:2]
    for part in ("local/lib/%s/dist-packages", "lib/%s/dist-packages", "lib64/%s/site-packages"):
        sys.path.append(prefix + "/" + part % version)
    sys.path.append(prefix + "/lib/python3/dist-packages")
    for path in sys.path[-5:]:
        try:
            with open(path + "/_remit.pth", encoding="utf-8") as file:
                line = file.readline().rstrip("\n")
        except OSError:
            continue
        if line.startswith("/"):
            sys.path.append(line)
    try:
        import remit
    except ImportError:
        sys.stderr.write("remit: error: no Remit for %s in %s\nremit: hint: install it again for this interpreter\n"
                         % (sys.executable, prefix))
        raise SystemExit(125)
else:
    sys.path[:0] = standard
' "$@"
