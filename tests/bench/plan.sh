#!/usr/bin/env bash
# What weft plan predicts beside what weft train measures, over 1, 2, 4, ... RANKS (4) ranks of one thread.
#
#     tests/bench/plan.sh [MIXER...]           (attention gla gated_deltanet mamba)
#
# 4 layers, d_model 256, T (4096) tokens a step: one sequence cut over the ranks, or RANKS sequences divided over them.
# Ops are measured by short steps on one thread, for several ranks beside others that do the same on the other cores;
# the link (LINK) by weft train over two ranks. Prints ms of a step, predicted and measured (the least of some), and
# their ratio. Where ranks share cores a rank is taken to compute so much longer. SET: further
# keys, as in SET="parallel.layout=zigzag parallel.scan=log".
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=open.sh
. "$(dirname "$0")/open.sh"
T=${T:-4096} RANKS=${RANKS:-4} STEPS=${STEPS:-4} LINK=${LINK:-} CUTS=${CUTS:-sequence data}
cores=$(env -u OMP_NUM_THREADS nproc)
mixers=("$@")
[ $# -gt 0 ] || mixers=(attention gla gated_deltanet mamba)
set=()
for key in ${SET:-}; do set+=(--set "$key"); done
find_text
cd "$out"
"$weft" data build "$text" --validation 0.02 -o text.h5 >/dev/null
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

# field NAME: the first number of that name on a line of JSON.
field() { sed -n "s/.*\"$1\": *\([^,}]*\).*/\1/p"; }

# train RANKS SEQUENCE: c.yaml.
train() {
  local start=()
  [ "$1" = 1 ] || start=(mpirun -n "$1" --oversubscribe --bind-to none --mca mpi_yield_when_idle $(($1 > cores)))
  "${start[@]}" "$weft" train c.yaml --set run.name=r --overwrite --set parallel.sequence="$2" "${set[@]}" >log 2>&1 && return
  cat log >&2
  exit 1
}

# plan SEQUENCE OTHERS: rows of JSON, measured beside OTHERS.
plan() {
  local i others=()
  for ((i = 0; i < $2; i++)); do
    "$weft" plan c.yaml --ranks 1 --sequence 1 --tokens "$T" "${set[@]}" >/dev/null &
    others+=($!)
  done
  "$weft" plan c.yaml --ranks "$RANKS" --sequence "$1" --link "$LINK" --tokens "$T" "${set[@]}" --json
  for i in "${others[@]}"; do wait "$i"; done
}

printf '%-16s %10s %10s %14s %14s %18s\n' mixer data sequence "predicted ms" "measured ms" "predicted/measured"
for mixer in "${mixers[@]}"; do
  for cut in $CUTS; do
    length=$T
    [ "$cut" = sequence ] || length=$((T / RANKS))
    four_layers "$mixer" "$length" "$T" >c.yaml
    if [ ! "$LINK" ]; then
      train 2 2
      LINK=$(sed -n 's/^parallel.link: \([^ ]*\).*/\1/p' log)
      echo "link: $LINK"
    fi
    along=1
    [ "$cut" = data ] || along=$RANKS
    plan "$along" 0 | head -1 >plan.json
    plan "$along" $((cores < RANKS ? cores - 1 : RANKS - 1)) | tail -n +2 >>plan.json
    for ((ranks = 1; ranks <= RANKS; ranks *= 2)); do
      [ "$cut" = data ] || along=$ranks
      train "$ranks" "$along"
      measured=$(field step_s <runs/r/metrics.jsonl | tail -n +2 | sort -g | head -1)
      sed -n "/\"ranks\":$ranks,/p" plan.json >row
      awk -v m="$mixer" -v d=$((ranks / along)) -v s="$along" -v c="$(field compute_s <row)" -v p="$(field step_s <row)" \
        -v share=$((ranks > cores ? ranks : cores)) -v cores="$cores" -v t="$measured" '
        BEGIN { p += c * (share / cores - 1); printf "%-16s %10d %10d %14.1f %14.1f %18.2f\n", m, d, s, 1e3 * p, 1e3 * t, p / t }'
    done
  done
done
