#!/bin/sh
# `dvc repro`, then the figures that matter; called by `make repro`, with .venv/bin on the PATH.
set -eu
cd "$(dirname "$0")/.."
git rev-parse --git-dir >/dev/null 2>&1 || { echo 'make repro needs a git clone: DVC ties results to revisions' >&2; exit 1; }
start=$(date +%s)
if dvc status -q 2>/dev/null; then
    echo 'nothing to do: data, parameters, code and results are as dvc.lock says'
else
    dvc repro
fi
python tools/summary.py
echo "$(($(date +%s) - start)) s"
