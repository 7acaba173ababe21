#!/usr/bin/env bash
# Make .venv hold the packages of constraints/<set>.txt, each by version and hash, and this project in editable form.
# Usage: scripts/install.sh base|engine|dev        PYTHON=... names the interpreter that makes a new .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted=${1:-}
case "$wanted" in
  base | engine | dev) ;;
  *) echo "usage: scripts/install.sh base|engine|dev" >&2; exit 2 ;;
esac

is_new_enough() { command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

make_venv() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
    if is_new_enough "$candidate"; then
      "$candidate" -m venv .venv && return
      echo "error: '$candidate -m venv' failed; install its venv module (python3-venv on Debian and Ubuntu)." >&2
      exit 1
    fi
  done
  echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11 make ..." >&2
  exit 1
}

stamp_of() { cksum <"constraints/$1.txt"; }

# Every set contains the ones before it with equal versions, so a larger set that is installed will do.
is_installed() {
  local set_name reached=""
  for set_name in base engine dev; do
    [ "$set_name" != "$1" ] || reached=1
    [ -n "$reached" ] || continue
    if [ "$(cat ".venv/.installed-$set_name" 2>/dev/null)" = "$(stamp_of "$set_name")" ]; then return 0; fi
  done
  return 1
}

is_new_enough .venv/bin/python || make_venv
pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input)

if ! is_installed "$wanted"; then
  echo "Installing constraints/$wanted.txt into .venv; the first time this downloads for some minutes."
  "${pip[@]}" install --quiet --require-hashes --only-binary :all: -r "constraints/$wanted.txt"
  stamp_of "$wanted" >".venv/.installed-$wanted"
fi

project="$PWD $(cksum <pyproject.toml)"
if [ "$(cat .venv/.installed-project 2>/dev/null)" != "$project" ]; then
  "${pip[@]}" install --quiet --no-deps --no-build-isolation --editable .
  echo "$project" >.venv/.installed-project
fi
