#!/usr/bin/env bash
# The default tests on the oldest and the newest of what the metadata promises, each in a new environment:
#
#     tests/versions.sh                          # all rows below
#     tests/versions.sh "3.13 2.15.0 5.24.0"     # Python, torch, transformers
#
# Takes a Python from the PATH or from pyenv and leaves a row out where there is none. torch comes from the registry
# that pip knows: on Linux with its CUDA libraries, 5 GB an environment. docs/compatibility.md has the last results.
set -uo pipefail
cd "$(dirname "$0")/.."

rows=("$@")
if [ ${#rows[@]} = 0 ]; then
    rows=(
        "3.10 2.6.0 5.0.0"   # the oldest of all three
        "3.10 2.6.0 5.20.2"  # the last transformers for Python 3.10
        "3.11 2.6.0 5.24.0"
        "3.13 2.15.0 5.24.0" # the newest
    )
fi

results=()
for row in "${rows[@]}"; do
    read -r version torch transformers <<< "$row"
    python=$(command -v "python$version" || ls "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python3 2> /dev/null | tail -n 1)
    if ! "$python" -c "" 2> /dev/null; then
        results+=("$row: there is no Python $version")
        continue
    fi
    work=$(mktemp -d)
    if "$python" -m venv "$work" &&
        "$work/bin/pip" install -q "torch==$torch" &&
        "$work/bin/pip" install -q ".[test]" "transformers==$transformers"; then
        echo "With Python $version, torch $torch, transformers $transformers:"
        "$work/bin/python" -m pytest -q 2>&1 | tee "$work/log"
        results+=("$row: $(tail -n 1 "$work/log")")
    else
        results+=("$row: cannot be installed")
    fi
    rm -rf "$work"
done
echo
echo "Python, torch, transformers:"
printf '%s\n' "${results[@]}"
! printf '%s\n' "${results[@]}" | grep -qE "failed|error|cannot"
