#!/usr/bin/env bash
# The real runs: LoRA on GSM8K's training problems with stories15M, vanilla, the scale control and SIBO, then
# token similarity over 100 test problems; and SmolLM2-135M, 30 layers, on the same problems.
# Needs the models and data of SMOOTH_PROBE_SHARED (default ../shared). From the project's root, after
# `cargo build --release`; about 15 minutes on two cores.
set -euo pipefail
shared=${SMOOTH_PROBE_SHARED:-../shared}
probe=${SMOOTH_PROBE:-./target/release/smooth-probe}
runs=${RUNS:-cells/real}
train() {
  "$probe" train --model "$shared/models/stories15M" --data "$shared/data/gsm8k/train.jsonl" \
    --method lora --steps 200 --batch-size 4 --accumulate 1 --warmup-steps 20 --seed 1 --out "$runs/$1" "${@:2}"
}
train vanilla
train none --sibo-lambda 0.2 --sibo-policy all --residual none
train sibo --sibo-lambda 0.2 --sibo-policy all
texts=$shared/data/llm-adapters/gsm8k/test.json
"$probe" similarity --model "$shared/models/stories15M" \
  --adapter none="$runs/none/last" --adapter vanilla="$runs/vanilla/last" --adapter sibo="$runs/sibo/last" \
  --reference none --texts "$texts" --template alpaca --limit 100 --out reports/real/stories15m
"$probe" similarity --model "$shared/models/SmolLM2-135M" --texts "$texts" --field instruction --limit 100 \
  --out reports/real/smollm2-135m
