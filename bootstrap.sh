#!/bin/sh
# Make .venv with exactly what requirements.lock says; does nothing if that is done. Called by every make target.
set -eu
cd "$(dirname "$0")"
here=$(pwd -P)

# The folder counts too: a virtual environment that was moved or copied still points at its old place.
fingerprint=$({ echo "$here"; cat requirements.lock pyproject.toml bootstrap.sh; } | cksum | cut -d' ' -f1)
stamp=".venv/.installed-$fingerprint"
[ -f "$stamp" ] && exit 0

new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
python=""
for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c "$new_enough"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "Fusion needs Python 3.11 or newer; none was found. Install it, or say which: make PYTHON=/path/to/python" >&2
    exit 1
fi

# Two makes at once: the second waits for the first, which may need minutes. The lock belongs to the open file that this
# shell shares with Python, and the kernel frees it however the shell ends.
exec 9>.bootstrap.lock
lock='import fcntl, sys; fcntl.flock(9, fcntl.LOCK_EX | (fcntl.LOCK_NB if sys.argv[1:] else 0))'
if ! "$python" -c "$lock" try 2>/dev/null; then
    echo "Waiting for another make to finish installing ..."
    "$python" -c "$lock"
fi
[ -f "$stamp" ] && exit 0

echo "Installing into .venv with $($python --version); the first time this takes a few minutes."
if ! .venv/bin/pip --version 2>/dev/null | grep -qF "from $here/.venv/"; then
    rm -rf .venv
    "$python" -m venv .venv
fi
rm -f .venv/.installed-*
# torch alone and first: asked for by its exact version, pip may take a wheel without CUDA where the machine offers one.
.venv/bin/pip install --disable-pip-version-check "$(grep '^torch==' requirements.lock)"
.venv/bin/pip install --disable-pip-version-check -r requirements.lock
.venv/bin/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
touch "$stamp"
echo "Installed."
