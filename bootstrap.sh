#!/bin/sh
# Make .venv with exactly what requirements.lock says; does nothing if that is done. Called by every make target.
set -eu
cd "$(dirname "$0")"

fingerprint=$(cat requirements.lock pyproject.toml bootstrap.sh | cksum | cut -d' ' -f1)
stamp=".venv/.installed-$fingerprint"
[ -f "$stamp" ] && exit 0

# Two makes at once: the second waits for the first, which may need minutes.
waited=0
until mkdir .bootstrap.lock 2>/dev/null; do
    if [ "$waited" -ge 1800 ]; then
        echo "Another make has been installing for half an hour. If none runs: rmdir .bootstrap.lock" >&2
        exit 1
    fi
    [ "$waited" -eq 0 ] && echo "Waiting for another make to finish installing ..."
    sleep 1
    waited=$((waited + 1))
done
trap 'rmdir .bootstrap.lock 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
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

echo "Installing into .venv with $($python --version); the first time this takes a few minutes."
[ -x .venv/bin/python ] || "$python" -m venv .venv
rm -f .venv/.installed-*
# torch alone and first: asked for by its exact version, pip may take a wheel without CUDA where the machine offers one.
.venv/bin/pip install --disable-pip-version-check "$(grep '^torch==' requirements.lock)"
.venv/bin/pip install --disable-pip-version-check -r requirements.lock
.venv/bin/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
touch "$stamp"
echo "Installed."
