#!/usr/bin/env bash
# One sequence over two ranks of one thread, against one process with one and with two threads.
#
#     tests/bench/ranks.sh [MIXER...]          (attention and every kind of scan mixer)
#
# 4 layers, d_model 256, one sequence of T tokens (16384), zigzag for attention. Prints, for each mixer: tokens/s of
# the three, the ratios asked for (at least 0.95 x two threads, at least 1.85 x one), and the peak memory of a rank
# beside parameters and optimiser (at most 0.55 x). Rates are medians over the steps after the first, and the three
# take turns ROUNDS (2) times. WEFT names the program (build/weft), DATA a text (Debian's fortunes).
set -euo pipefail
weft=$(realpath "${WEFT:-build/weft}") T=${T:-16384} STEPS=${STEPS:-4} ROUNDS=${ROUNDS:-2}
text=$(realpath "${DATA:-/usr/share/games/fortunes/computers}")
mixers=("$@")
[ $# -gt 0 ] || mixers=(attention simple_gla gla deltanet gated_deltanet kda mamba mamba2 mlstm retnet hgrn2 mingru)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
while [ ! -e many ] || [ "$(stat -c %s many)" -lt $((2 * T * (STEPS + 2))) ]; do cat "$text" >>many; done # whole sequences only
"$weft" data build many --validation 0.1 -o text.h5 >/dev/null

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_WAIT_POLICY=passive

# config MIXER: heads of 64 channels where a mixer has heads.
config() {
  case $1 in
  mamba | mingru | minlstm) echo "{type: $1}" ;;
  mamba2) echo "{type: mamba2, head_dim: 64}" ;;
  *) echo "{type: $1, heads: 4}" ;;
  esac
}

# run NAME THREADS COMMAND...: appends the median rate to NAME.rate and the peak to NAME.peak.
run() {
  local name=$1 threads=$2
  shift 2
  OMP_NUM_THREADS=$threads "$@" "$weft" train c.yaml --set run.name="$name" --overwrite "${extra[@]}" >"$name.log" 2>&1 || {
    cat "$name.log" >&2
    exit 1
  }
  sed -n 's/.*"step_s": *\([^,}]*\).*/\1/p' "runs/$name/metrics.jsonl" | tail -n +2 | sort -g |
    awk -v t="$T" '{ v[NR] = $1 } END { print t / v[int((NR + 1) / 2)] }' >>"$name.rate"
  sed -n 's/.*"held_bytes": *\([^,}]*\).*"peak_bytes": *\([^,}]*\).*/\1 \2/p' "runs/$name/metrics.jsonl" | tail -1 |
    awk '{ print $2 - $1 }' >"$name.peak"
}

median() { sort -g "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

printf '%-16s %10s %10s %10s %10s %10s %8s\n' mixer "1 thread" "2 threads" "2 ranks" "/2 threads" "/1 thread" memory
for mixer in "${mixers[@]}"; do
  rm -f ./*.rate
  cat >c.yaml <<EOF
data: {store: text.h5, seq_len: $T}
model:
  d_model: 256
  blocks: [{repeat: 4, mixer: $(config "$mixer"), mlp: {type: swiglu}}]
train: {steps: $STEPS, batch_tokens: $T, optimizer: {type: adamw, lr: 1.0e-4}, schedule: {type: constant}}
eval: {every: 0, batches: 1}
checkpoint: {every: 0}
log: {every: 1}
EOF
  for ((round = 0; round < ROUNDS; round++)); do
    extra=()
    run one 1
    run two 2
    extra=(--set parallel.sequence=2)
    run ranks 1 mpirun -n 2 --bind-to core
  done
  awk -v m="$mixer" -v a="$(median one.rate)" -v b="$(median two.rate)" -v c="$(median ranks.rate)" \
    -v p="$(cat one.peak)" -v q="$(cat ranks.peak)" \
    'BEGIN { printf "%-16s %10.0f %10.0f %10.0f %10.2f %10.2f %8.2f\n", m, a, b, c, c / b, c / a, q / p }'
done
