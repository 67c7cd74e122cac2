#!/usr/bin/env bash
# One sequence over two ranks of one thread, against one process with one and with two threads.
#
#     tests/bench/ranks.sh [MIXER...]          (attention and every kind of scan mixer)
#
# 4 layers, d_model 256, one sequence of T tokens (16384), zigzag for attention. Prints, for each mixer: tokens/s of
# the three, and of two processes apart that train on half the tokens each and share nothing but the machine; the ratios
# asked for (at least 0.95 x two threads, at least 1.85 x one); the latter of the fastest step of each; what the two apart
# reach (what lacks to 2 there is the machine's; of attention they have half the scores); and the peak memory of a rank
# beside parameters and optimiser (at most 0.55 x). All take turns ROUNDS (3) times: a round's rates are medians over its
# steps after the first, and rates and ratios the middle ones of the rounds. WEFT names the program (build/weft), TEXT a
# text (that of fortunes).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=open.sh
. "$(dirname "$0")/open.sh"
T=${T:-16384} STEPS=${STEPS:-4} ROUNDS=${ROUNDS:-3}
find_text
mixers=("$@")
[ $# -gt 0 ] || mixers=(attention simple_gla gla deltanet gated_deltanet kda mamba mamba2 mlstm retnet
  hgrn2 mingru gateloop lightning linear_attention minlstm aaren base_conv)
text_of $((2 * T * (STEPS + 2))) >"$out/many"
cd "$out"
"$weft" data build many --validation 0.1 -o text.h5 >/dev/null

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_WAIT_POLICY=passive

# run NAME THREADS CONFIG COMMAND...: appends the median rate to NAME.rate and the highest to NAME.best; the peak
# to NAME.peak.
run() {
  local name=$1 threads=$2 config=$3
  shift 3
  OMP_NUM_THREADS=$threads "$@" "$weft" train "$config" --set run.name="$name" --overwrite "${extra[@]}" \
    >"$name.log" 2>&1 || {
    cat "$name.log" >&2
    exit 1
  }
  sed -n 's/.*"tokens": *\([0-9]*\),.*"step_s": *\([^,}]*\).*/\1 \2/p' "runs/$name/metrics.jsonl" |
    awk 'NR > 1 { print ($1 - before) / $2 } { before = $1 }' | sort -g >"$name.steps"
  middle <"$name.steps" >>"$name.rate"
  tail -1 "$name.steps" >>"$name.best"
  sed -n 's/.*"held_bytes": *\([^,}]*\).*"peak_bytes": *\([^,}]*\).*/\1 \2/p' "runs/$name/metrics.jsonl" | tail -1 |
    awk '{ print $2 - $1 }' >"$name.peak"
}

middle() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
# best NAME: the highest of all rounds.
best() { sort -g "$1.best" | tail -1; }
# ratio A B: the middle one of the rounds' A over B.
ratio() { paste "$1" "$2" | awk '{ print $1 / $2 }' | middle; }

printf '%-16s %9s %9s %9s %9s %11s %10s %8s %8s %7s\n' \
  mixer "1 thread" "2 threads" "2 ranks" "2 apart" "/2 threads" "/1 thread" fastest "apart/1" memory
for mixer in "${mixers[@]}"; do
  rm -f ./*.rate ./*.best
  four_layers "$mixer" "$T" "$T" >whole.yaml
  four_layers "$mixer" $((T / 2)) $((T / 2)) >half.yaml
  for ((round = 0; round < ROUNDS; round++)); do
    extra=()
    run one 1 whole.yaml
    run two 2 whole.yaml
    run left 1 half.yaml taskset -c 0 &
    run right 1 half.yaml taskset -c 1
    wait $!
    extra=(--set parallel.sequence=2)
    run ranks 1 whole.yaml mpirun -n 2 --bind-to core
  done
  paste left.rate right.rate | awk '{ print $1 + $2 }' >apart.rate
  awk -v m="$mixer" -v a="$(middle <one.rate)" -v b="$(middle <two.rate)" -v c="$(middle <ranks.rate)" \
    -v d="$(middle <apart.rate)" -v cb="$(ratio ranks.rate two.rate)" -v ca="$(ratio ranks.rate one.rate)" \
    -v f="$(best ranks)" -v s="$(best one)" -v da="$(ratio apart.rate one.rate)" \
    -v p="$(cat one.peak)" -v q="$(cat ranks.peak)" \
    'BEGIN {
      printf "%-16s %9.0f %9.0f %9.0f %9.0f %11.2f %10.2f %8.2f %8.2f %7.2f\n", m, a, b, c, d, cb, ca, f / s, da, q / p
    }'
done
