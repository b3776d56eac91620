#!/usr/bin/env bash
# Compares `smooth-probe similarity` with the script similarity.py, as whole commands; prints a Markdown table.
#
#   benches/peer/similarity.sh
#
# Everything has a default; the environment overrides it:
#   PEER_PYTHON          a Python with torch and transformers; else a virtual environment is made in target/peer
#   SMOOTH_PROBE         the program; else `cargo build --release` makes it
#   SMOOTH_PROBE_SHARED  folder with models/ and data/gsm8k/; else PEER_MODELS must name models
#   PEER_MODELS          model folders or hub names, separated by spaces
#   PEER_TEXTS           a file with a text a line; else GSM8K's questions, else generated sentences
#   PEER_KEEP_STATES     1: the script keeps all states in memory instead of a second pass
#   PEER_COUNT, PEER_RUNS, PEER_THREADS, PEER_BATCH   500, 5, 2, and the script's own batch size
#
# Run it on an idle machine: the load is printed beside the figures.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=target/peer
mkdir -p "$work"

python=${PEER_PYTHON:-}
if [ -z "$python" ]; then
  python=$work/venv/bin/python
  if [ ! -x "$python" ]; then
    python3 -m venv "$work/venv"
    "$python" -m pip install --quiet -r benches/peer/requirements.txt
  fi
fi

program=${SMOOTH_PROBE:-}
if [ -z "$program" ]; then
  cargo build --release
  program=target/release/smooth-probe
fi

shared=${SMOOTH_PROBE_SHARED:-}
models=${PEER_MODELS:-}
if [ -z "$models" ]; then
  if [ -z "$shared" ]; then
    echo "no model to compare on: set PEER_MODELS, or SMOOTH_PROBE_SHARED to a folder with models/" >&2
    exit 2
  fi
  models="$shared/models/stories15M $shared/models/all-MiniLM-L6-v2"
fi

count=${PEER_COUNT:-500}
texts=${PEER_TEXTS:-}
if [ -z "$texts" ]; then
  texts=$work/texts.txt
  "$python" benches/peer/texts.py "$shared/data/gsm8k/train.jsonl" "$count" > "$texts"
fi

arguments=(--program "$program" --texts "$texts" --count "$count" --work "$work/runs")
arguments+=(--runs "${PEER_RUNS:-5}" --threads "${PEER_THREADS:-2}")
for model in $models; do
  arguments+=(--model "$model")
done
if [ -n "${PEER_BATCH:-}" ]; then
  arguments+=(--batch-size "$PEER_BATCH")
fi
if [ "${PEER_KEEP_STATES:-0}" = 1 ]; then
  arguments+=(--keep-states)
fi
exec "$python" benches/peer/compare.py "${arguments[@]}"
