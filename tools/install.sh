#!/bin/sh
# Make .venv: the newest Python here that can, then everything in pyproject's `dev` extra, at the versions in constraints.txt.
# PYTHON=/path/to/python3 chooses another interpreter.
set -eu
cd "$(dirname "$0")/.."
v=.venv/bin

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
usable() { new_enough $v/python && $v/python -m pip --version >/dev/null 2>&1; }
make_venv() {   # Debian keeps ensurepip apart from python3: a pip or a uv found elsewhere will do as well
    rm -rf .venv
    "$1" -m venv .venv >/dev/null 2>&1 && return
    rm -rf .venv
    uv venv -q --seed -p "$1" .venv 2>/dev/null && return
    rm -rf .venv
    "$1" -m venv --without-pip .venv 2>/dev/null && "$1" -m pip -q --python $v/python install pip 2>/dev/null
}

if ! usable; then
    for python in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if new_enough "$python" && make_venv "$python" && usable; then break; fi
    done
fi
usable || {
    echo "No Python >= 3.11 that can make a virtual environment was found." >&2
    echo "On Debian: apt install python3 python3-venv. Elsewhere: make PYTHON=/path/to/python3.12 ..." >&2
    exit 1
}
echo "Installing into .venv ($($v/python --version)) ..."

# uv takes seconds where pip takes minutes. It does not read pip's configuration, so a mirror set there is handed on.
mirror=${PIP_INDEX_URL:-$($v/python -m pip config list 2>/dev/null | sed -n "s/^global\.index.url='\(.*\)'$/\1/p")}
[ -z "$mirror" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$mirror}"
# constraints.txt holds a hash of every file that may be installed. pip knows no hash of a folder, so it takes two steps.
pip() { $v/python -m pip install -q --disable-pip-version-check "$@"; }
sed -n '/^uv==/,/[^\\]$/p' constraints.txt > .venv/uv.txt
if pip --require-hashes -r .venv/uv.txt &&
   $v/uv pip install -q --compile-bytecode --python $v/python -c constraints.txt -e '.[dev]'; then :; else
    echo 'uv could not install; pip takes over (minutes)' >&2
    pip --require-hashes -r constraints.txt
    pip --no-deps -e .
fi
