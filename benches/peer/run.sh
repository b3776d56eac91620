#!/usr/bin/env bash
# smooth-probe against torch + transformers + peft on this machine; prints a table and writes it to docs/performance.md.
#
#   benches/peer/run.sh --gsm8k data/gsm8k/train.jsonl
#   benches/peer/run.sh --quick        every row once, few steps; writes its table beside the cases instead
#   benches/peer/run.sh --only lora    one row; --help lists the rest
#
# Makes its own virtual environment (several GB). The environment overrides where things are:
#   SMOOTH_PROBE_BENCH        folder of the virtual environment and the cases (target/peer)
#   SMOOTH_PROBE_PEER_PYTHON  a Python that has what requirements.txt names; no environment is made
#   SMOOTH_PROBE_PROGRAMS     folder of a built smooth-probe and its examples; nothing is built
#   CARGO                     what builds (cargo)
#
# Run it on an idle machine, for about half an hour: the load is printed beside the figures.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${SMOOTH_PROBE_BENCH:-target/peer}
mkdir -p "$work"

python=${SMOOTH_PROBE_PEER_PYTHON:-}
if [ -z "$python" ]; then
  python=$work/venv/bin/python
  # Made anew if the list changed or the last attempt broke off.
  if ! cmp -s benches/peer/requirements.txt "$work/venv/requirements.txt"; then
    python3 -m venv --clear "$work/venv"
    "$python" -m pip install --quiet -r benches/peer/requirements.txt
    cp benches/peer/requirements.txt "$work/venv/requirements.txt"
  fi
fi

programs=${SMOOTH_PROBE_PROGRAMS:-}
if [ -z "$programs" ]; then
  ${CARGO:-cargo} build --release --bin smooth-probe \
    --example train_cost --example states_cost --example growth --example load_cost
  programs=${CARGO_TARGET_DIR:-target}/release
fi

exec "$python" benches/peer/table.py --programs "$programs" --work "$work/cases" "$@"
