#!/usr/bin/env bash
# Real models of several families through the verbs: inspect, similarity at every layer, 50 steps of LoRA with the initial
# residual. Where the models are: SMOOTH_PROBE_SHARED (default ../shared); what is not there is SKIPPED.
#
#   tests/real/run.sh PROGRAM
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
binary=${1:?name the program}
shared=${SMOOTH_PROBE_SHARED:-../shared}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { printf 'real: %s\n' "$*" >&2; exit 1; }
probe() { "$binary" --quiet "$@" 2>"$work/stderr" || { cat "$work/stderr" >&2; fail "$*"; }; }

# A model, its texts, and what trains it: options of `train`.
check() {
    local name=$1 path=$2 texts=$3
    shift 3
    if [[ ! -e $path || ! -e $texts ]]; then
        printf '%-18s SKIPPED: %s or %s is not there\n' "$name" "$path" "$texts"
        return
    fi
    # Blank lines end what is read here; 24 texts bound the time.
    grep -v '^$' "$texts" | head -n 24 >"$work/$name.txt"
    probe inspect --model "$path" --method lora --sibo-lambda 0.2 --sibo-policy all >"$work/plan.txt"
    grep -q 'mixed into' "$work/plan.txt" || fail "$name: inspect shows no mixed module"
    probe train --model "$path" --method lora --rank 4 --sibo-lambda 0.2 --sibo-policy all --steps 50 --warmup-steps 5 \
        --batch-size 4 --accumulate 1 --cutoff 48 --eval-every 50 --save-every 50 --probe-every 50 --val-size 4 \
        --out "$work/$name" "$@" >/dev/null
    [[ $(wc -l <"$work/$name/events.jsonl") -eq 50 ]] || fail "$name: not 50 steps"
    probe similarity --model "$path" --adapter "sibo=$work/$name/adapter" --texts "$work/$name.txt" --max-tokens 64 \
        --layers all --out "$work/$name/similarity" >/dev/null
    local base
    base=$(awk -F, '$1 == "base" && $4 == "block" && $5 == "cosine" && $6 == "all" { layer = $3; value = $7 }
        END { print layer, value }' "$work/$name/similarity/similarity.csv")
    printf '%-18s last block (layer, cosine): %s; loss %s -> %s\n' "$name" "$base" \
        "$(head -n 1 "$work/$name/events.jsonl" | sed 's/.*"loss":\([0-9.]*\).*/\1/')" \
        "$(tail -n 1 "$work/$name/events.jsonl" | sed 's/.*"loss":\([0-9.]*\).*/\1/')"
}

models=$shared/models
gsm8k=$shared/data/gsm8k/train.jsonl
english=$work/english.txt
if [[ -f $gsm8k ]]; then
    head -n 24 "$gsm8k" | sed 's/.*"question": "\([^"\\]*\).*/\1/' >"$english"
    head -n 40 "$gsm8k" >"$work/train.jsonl"
fi
rte=$shared/data/glue/RTE/train.tsv
if [[ -f $rte ]]; then head -n 41 "$rte" >"$work/rte.tsv"; fi

check stories260K "$models/stories260K" "$english" --data "$work/train.jsonl"
check stories15M "$models/stories15M" "$english" --data "$work/train.jsonl"
check SmolLM2-135M "$models/SmolLM2-135M" "$english" --data "$work/train.jsonl"
if [[ -f $rte ]]; then
    check all-MiniLM-L6-v2 "$models/all-MiniLM-L6-v2" "$english" --data "$work/rte.tsv" --label-field label
else
    printf '%-18s SKIPPED: %s is not there\n' all-MiniLM-L6-v2 "$rte"
fi
check rxnmapper-albert "$models/rxnmapper-albert" "$models/rxnmapper-albert/texts.txt" \
    --data "$models/rxnmapper-albert/texts.txt"
