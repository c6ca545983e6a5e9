#!/usr/bin/env bash
# The transcript in publishing.md: build, push to a Hub on the loopback, read back as somebody else, measure again.
# Run it from the repository: bash docs/publishing.sh RUN [THE_PYTHON_OF_ANOTHER_ENVIRONMENT]
set -euo pipefail
scratch=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT
export HF_HUB_DISABLE_PROGRESS_BARS=1 HF_HUB_DISABLE_TELEMETRY=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python tests/support/hub_server.py > "$scratch/settings" &
server=$!
until [ -s "$scratch/settings" ]; do sleep 0.1; done
source "$scratch/settings"
theirs=${2:-python}
mkdir "$scratch/runs"
cp -r "$1" "$scratch/runs/tried"
cd "$scratch"

show() {
    echo "+ $*" | sed "s#^+ $theirs #+ python #"
    "$@" 2>&1 | sed -n "$shown"
}
shown='1,$p'

export HF_HOME="$scratch/mine"
show python -m cifar100_tk.hub build runs/tried --to tried
show find tried -type f
show python -m cifar100_tk.hub push tried me/tried
export HF_HOME="$scratch/theirs"
unset HF_TOKEN
shown=1p show "$theirs" -m cifar100_tk.eval me/tried --data.source shapes100 --data.shapes100-rows 12800 2000
kill "$server"
export HF_HUB_OFFLINE=1
shown=1p show "$theirs" -m cifar100_tk.eval me/tried --data.source shapes100 --data.shapes100-rows 12800 2000
