#!/usr/bin/env bash
# Format, lint, types, import rules, spelling: every check runs, then the ones that failed are named.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

failed=()
run() {
  local name=$1
  shift
  if "$@"; then echo "ok    $name"; else failed+=("$name"); echo "FAIL  $name" >&2; fi
}

run "format" .venv/bin/ruff format --quiet --check .
run "lint" .venv/bin/ruff check --quiet .
run "types" .venv/bin/mypy --no-error-summary
run "imports" .venv/bin/lint-imports --no-logo
run "spelling" .venv/bin/codespell

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
