#!/usr/bin/env bash
# Every measure over the layers of three real models, beside their null baselines, on 32 problems of GSM8K's test set.
# Needs the models and data of SMOOTH_PROBE_SHARED (default ../shared). From the project's root, after
# `cargo build --release`.
set -euo pipefail
shared=${SMOOTH_PROBE_SHARED:-../shared}
probe=${SMOOTH_PROBE:-./target/release/smooth-probe}
out=${OUT:-reports/real/measures}
"$probe" similarity \
  --run stories15M="$shared/models/stories15M" --run SmolLM2-135M="$shared/models/SmolLM2-135M" \
  --run all-MiniLM-L6-v2="$shared/models/all-MiniLM-L6-v2" \
  --texts "$shared/data/llm-adapters/gsm8k/test.json" --field instruction --limit "${LIMIT:-32}" \
  --measures streaming,matrix,lookup --lookup-texts "${LOOKUP:-10}" --baselines texts,untrained,shuffled \
  --relative --panel-by-run --out "$out"
