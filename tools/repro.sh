#!/bin/sh
# `dvc repro`, then the figures that matter; called by `make repro`, with .venv/bin on the PATH.
set -eu
cd "$(dirname "$0")/.."
git rev-parse --git-dir >/dev/null 2>&1 || { echo 'make repro needs a git clone: DVC ties results to revisions' >&2; exit 1; }
start=$(date +%s)
dvc repro
python tools/summary.py
echo "$(($(date +%s) - start)) s"
