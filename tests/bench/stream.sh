#!/bin/sh
# Exact streamed training of long sequences: what memory does one take?
#
#   tests/bench/stream.sh [LENGTH...]      2^20 and 2^23 bytes by default
#
# Environment: WEFT (build/weft), TEXT (a text, repeated to the length; the texts of fortunes by default), MIXER (gla),
# BLOCKS (4), WIDTH (128), PIECE (4096), STEPS (1), THREADS (2), OUT (a temporary folder for stores and runs).
#
# For each length one row: the process's largest resident memory, the peak of Weft's own count, what of it holds most,
# tokens a second and the loss. Then the last length less the first, and the bounds: at most 256 MiB more, each below
# 1 GiB. Fails where a bound is missed.
set -eu
# shellcheck source-path=SCRIPTDIR source=open.sh
. "$(dirname "$0")/open.sh"
mixer=${MIXER:-gla} blocks=${BLOCKS:-4} width=${WIDTH:-128}
piece=${PIECE:-4096} steps=${STEPS:-1} threads=${THREADS:-2}
more=256 most=1024 # MiB

[ $# -gt 0 ] || set -- 1048576 8388608
find_text

# store LENGTH: a document of LENGTH + 1 bytes, of the text as often as it takes, and a little to validate on.
store() {
  text_of $(($1 + 1)) > "$out/train.txt"
  head -c 10000 "$text" > "$out/validation.txt"
  "$weft" data build "$out/train.txt" --validation-file "$out/validation.txt" -o "$out/$1.h5" --replace > /dev/null
  rm "$out/train.txt"
}

# run LENGTH: prints what training prints.
run() {
  cat > "$out/$1.yaml" << EOF
run: {seed: 1, threads: $threads, dir: '$out/$1'}
data: {store: '$out/$1.h5', seq_len: $1}
model:
  d_model: $width
  blocks: [{repeat: $blocks, mixer: {type: $mixer}, mlp: {type: swiglu}}]
train:
  steps: $steps
  batch_tokens: $1
  stream: $piece
  optimizer: {type: adamw, lr: 1.0e-3}
eval: {every: 0}
checkpoint: {every: 0, keep: 1}
log: {every: 1}
EOF
  "$weft" train "$out/$1.yaml" --overwrite --profile
}

field() { tail -n 1 "$out/$1/metrics.jsonl" | sed -n "s/.*\"$2\": \([-0-9.e+]*\).*/\1/p"; }
mib() { awk -v x="$1" -v unit="$2" 'BEGIN { k["KiB"] = 1 / 1024; k["MiB"] = 1; k["GiB"] = 1024; print x * k[unit] }'; }

failed=0 first=""
echo "$blocks blocks of $mixer, width $width, $steps steps of one sequence in pieces of $piece; $threads threads."
echo
echo "| bytes of the sequence | resident MiB | Weft's count MiB | tokens/s | loss |"
echo "|---|---|---|---|---|"
for length in "$@"; do
  store "$length"
  if ! run "$length" > "$out/$length.log" 2>&1; then
    tail -n 3 "$out/$length.log" >&2
    die "training failed at $length"
  fi
  # shellcheck disable=SC2046 # peak memory: X MiB resident, Y MiB by Weft's own count
  set -- $(sed -n 's/^peak memory: \(.*\) resident, \(.*\) by Weft.*/\1 \2/p' "$out/$length.log")
  resident=$(mib "$1" "$2") own=$(mib "$3" "$4")
  printf '| %s | %.0f | %.0f | %.0f | %.4f |\n' "$length" "$resident" "$own" "$(field "$length" tokens_per_s)" \
    "$(field "$length" loss)"
  [ -n "$first" ] || first=$resident
  awk -v x="$resident" -v most=$most 'BEGIN { exit x > most }' || failed=1
done
awk -v a="$first" -v b="$resident" -v more=$more -v most=$most 'BEGIN {
  printf "\nThe last takes %.0f MiB more than the first (asked: at most %d); each below %d MiB is asked.\n", b - a, more, most
  exit b - a > more }' || failed=1
[ $failed = 0 ] || die "a bound is missed"
