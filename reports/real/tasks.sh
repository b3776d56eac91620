#!/bin/sh
# What stands in reports/real/tasks: LoRA, vanilla, with its scale control and with SIBO, trained on the commonsense sets and scored
# by likelihood on seven of them. Needs the folder that SMOOTH_PROBE_SHARED names (default ../shared). A model of 15 M
# weights knows none of this: the pipeline is what is shown.
#   sh reports/real/tasks.sh [PROGRAM] [WORK_FOLDER]
set -eu
program=${1:-target/release/smooth-probe}
work=${2:-$(mktemp -d)}
shared=${SMOOTH_PROBE_SHARED:-../shared}
out=$(dirname "$0")/tasks
train() {
    "$program" train --quiet --model "$shared/models/stories15M" --task commonsense --data "$shared/data/llm-adapters" \
        --rank 8 --lr 1e-3 --steps 60 --warmup-steps 6 --batch-size 8 --accumulate 1 --cutoff 192 --val-size 64 \
        --eval-every 60 --loss-on answer --out "$work/$1" $2
}
train vanilla ""
train none "--sibo-lambda 0.3 --sibo-policy all --residual none"
train sibo "--sibo-lambda 0.3 --sibo-policy all"
"$program" evaluate --model "$shared/models/stories15M" --base --adapter "vanilla=$work/vanilla/adapter" \
    --adapter "none=$work/none/adapter" --adapter "sibo=$work/sibo/adapter" --task commonsense \
    --data "$shared/data/llm-adapters" --mode loglikelihood --limit 200 --out "$work/tasks"
mkdir -p "$out"
find "$work/tasks" -maxdepth 1 -type f -name '*.csv' -exec cp {} "$out" \;
