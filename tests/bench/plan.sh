#!/usr/bin/env bash
# What weft plan predicts beside what weft train measures, for one sequence over 1, 2, ... RANKS ranks of one thread.
#
#     tests/bench/plan.sh [MIXER...]           (simple_gla and attention)
#
# 4 layers, d_model 256, one sequence of T tokens (4096). Ops are measured by a short step on one thread, the link is
# LINK (4GB/s,5us: about that of ranks of one host). Prints ms of a step, predicted and measured, and
# their ratio. More ranks than cores share them: their times say nothing.
set -euo pipefail
weft=$(realpath "${WEFT:-build/weft}") T=${T:-4096} RANKS=${RANKS:-2} STEPS=${STEPS:-4} LINK=${LINK:-4GB/s,5us}
text=$(realpath "${DATA:-/usr/share/games/fortunes/computers}")
mixers=("$@")
[ $# -gt 0 ] || mixers=(simple_gla attention)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"$weft" data build "$text" --validation 0.02 -o text.h5 >/dev/null
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

# field NAME: the first number of that name on a line of JSON.
field() { sed -n "s/.*\"$1\": *\([^,}]*\).*/\1/p"; }

printf '%-16s %6s %14s %14s %18s\n' mixer ranks "predicted ms" "measured ms" "predicted/measured"
for mixer in "${mixers[@]}"; do
  cat >c.yaml <<EOF
data: {store: text.h5, seq_len: $T}
model:
  d_model: 256
  blocks: [{repeat: 4, mixer: {type: $mixer, heads: 4}, mlp: {type: swiglu}}]
train: {steps: $STEPS, batch_tokens: $T, optimizer: {type: adamw, lr: 1.0e-4}, schedule: {type: constant}}
eval: {every: 0, batches: 1}
checkpoint: {every: 0}
log: {every: 1}
EOF
  "$weft" plan c.yaml --ranks "$RANKS" --sequence "$RANKS" --link "$LINK" --tokens "$T" --json >plan.json
  for ((ranks = 1; ranks <= RANKS; ranks *= 2)); do
    predicted=$(sed -n "/\"ranks\":$ranks,/p" plan.json | field step_s)
    start=()
    [ "$ranks" = 1 ] || start=(mpirun -n "$ranks" --oversubscribe --bind-to none)
    "${start[@]}" "$weft" train c.yaml --set run.name=r --overwrite --set parallel.sequence="$ranks" >log 2>&1 || {
      cat log >&2
      exit 1
    }
    measured=$(field step_s <runs/r/metrics.jsonl | tail -n +2 | sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }')
    awk -v m="$mixer" -v r="$ranks" -v p="$predicted" -v t="$measured" \
      'BEGIN { printf "%-16s %6d %14.1f %14.1f %18.2f\n", m, r, 1e3 * p, 1e3 * t, p / t }'
  done
done
