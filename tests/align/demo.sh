#!/bin/sh
# A real agent with a hostile model, with Remit and without: installs itself into .venv beside the sources and runs.
# Needs git, Python 3.11 or newer with venv, and libseccomp; `sh tests/align/demo.sh` says what is missing.
set -eu
cd "$(dirname -- "$0")/../.."

python=${PYTHON:-}
for candidate in "$python" /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
	# The system's interpreter first: one below somebody's home directory is closed to other users.
	[ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
	python=$candidate
	break
done

missing=
[ -n "$python" ] && "$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
command -v git >/dev/null || missing="$missing git"
command -v setpriv >/dev/null || missing="$missing util-linux"
[ -n "$python" ] && "$python" -c 'import ctypes; ctypes.CDLL("libseccomp.so.2")' 2>/dev/null || missing="$missing libseccomp2"
if [ -n "$missing" ]; then
	echo "demo: missing on this machine; on Debian and Ubuntu: sudo apt-get install -y$missing" >&2
	exit 1
fi

if [ ! -e .venv/.demo ] || [ pyproject.toml -nt .venv/.demo ]; then
	echo "Installing Remit and the agent into .venv (about a minute; 600 MB, nearly all of it the agent's) ..." >&2
	[ -x .venv/bin/python ] || "$python" -m venv .venv
	# The group by hand: pip before 25.1 does not know dependency groups.
	.venv/bin/python - <<-'END' | .venv/bin/python -m pip install --quiet --disable-pip-version-check -e . -r /dev/stdin
		import tomllib
		with open("pyproject.toml", "rb") as file:
		    print(*tomllib.load(file)["dependency-groups"]["demo"], sep="\n")
	END
	: >.venv/.demo
fi
exec .venv/bin/python -m tests.align.demo "$@"
