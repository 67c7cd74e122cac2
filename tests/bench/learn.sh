#!/bin/sh
# It learns: every mixer in the same model on the same tokens of one text, as a Markdown table.
#
#   tests/bench/learn.sh [MIXER...]           all of `weft layers` by default; MIXER,KEY=VALUE... sets options
#
# Environment: WEFT (build/weft), STORE (data-cache/fortunes.h5, which ./setup.sh train makes), STEPS (300), LR (3.0e-3),
# WIDTH (128), BLOCKS (2), BATCH (4096 tokens), LENGTH (256), THREADS (2), SEED (1), OUT (a temporary folder for the
# runs), LSTM (yes; no leaves its row out).
#
# A model is BLOCKS blocks of the mixer, with its defaults but for the options below, and a SwiGLU of 2 WIDTH; AdamW, cosine schedule. Beside them
# stand the bigram model of the text and a stack of LSTM layers alone, as many as blocks, whose width is chosen so that
# it has as many parameters as the middle one of the models. All take about half an hour on two cores.
set -eu
# shellcheck source-path=SCRIPTDIR source=open.sh
. "$(dirname "$0")/open.sh"
store=${STORE:-data-cache/fortunes.h5}
steps=${STEPS:-300} lr=${LR:-3.0e-3} width=${WIDTH:-128} blocks=${BLOCKS:-2} batch=${BATCH:-4096} length=${LENGTH:-256}
threads=${THREADS:-2} seed=${SEED:-1}

"$weft" data info "$store" > /dev/null || die "set STORE to a token store; ./setup.sh train makes the default one"
# shellcheck disable=SC2046 # a word for each mixer
[ $# -gt 0 ] || set -- $("$weft" layers | awk '/^mixer$/ { on = 1; next } /^$/ { on = 0 } on { print $1 }')

# What sees neither positions nor the order of tokens by itself gets a short convolution; the others their defaults.
options_of() {
  case $1 in
  linear_attention) echo ", conv: true" ;;
  *,*) echo ", ${1#*,}" | sed 's/=/: /g; s/, */, /g' ;;
  esac
}

# run NAME WIDTH BLOCK STEPS: prints what training prints.
run() {
  cat > "$out/$1.yaml" << EOF
run: {name: $1, seed: $seed, threads: $threads, dir: '$out/$1'}
data: {store: '$store', seq_len: $length}
model:
  d_model: $2
  blocks: [{repeat: $blocks, $3}]
train:
  steps: $4
  batch_tokens: $batch
  optimizer: {type: adamw, lr: $lr, weight_decay: 0.1}
  schedule: {type: cosine, warmup: 30, min_ratio: 0.1}
eval: {every: 0}
checkpoint: {every: 0, keep: 1}
EOF
  "$weft" train "$out/$1.yaml" --overwrite
}

# From what training printed.
parameters() { awk '$2 == "parameters:" { print $1 }' "$out/$1.log"; }
number() { echo "$1" | awk '{ x = $1 + 0; if ($1 ~ /k$/) x *= 1e3; if ($1 ~ /M$/) x *= 1e6; print int(x) }'; }
field() { tail -n 1 "$out/$1/metrics.jsonl" | sed -n "s/.*\"$2\": \([-0-9.e+]*\).*/\1/p"; }
skipped() { grep -c ' skipped: ' "$out/$1.log" || true; }

# train NAME WIDTH BLOCK: one row of the table. A step that is skipped was not finite.
train() {
  echo "$1" >&2
  if ! run "$1" "$2" "$3" "$steps" > "$out/$1.log" 2>&1; then
    tail -n 3 "$out/$1.log" >&2
    echo "| $4 | | failed | | | |"
    failed=1
    return
  fi
  bits=$(field "$1" val_bpb)
  bad=$(skipped "$1")
  [ "$bad" = 0 ] || failed=1
  printf '| %s | %s | %s | %s | %s | %s |\n' "$4" "$(parameters "$1")" "$(printf '%.3f' "$bits")" \
    "$(awk -v a="$bigram" -v b="$bits" 'BEGIN { printf "%.3f", a - b }')" "$(field "$1" tokens_per_s | cut -d. -f1)" "$bad"
}

# The width of the LSTM whose parameters come nearest to $1.
lstm="mixer: lstm, mlp: none"
lstm_parameters() {
  run size "$1" "$lstm" 0 > "$out/size.log" 2>&1 || die "$(tail -n 2 "$out/size.log")"
  number "$(parameters size)"
}
lstm_width() {
  low=8 high=1024
  while [ $((high - low)) -gt 8 ]; do
    # shellcheck disable=SC2017 # a multiple of 8
    middle=$((low + (high - low) / 16 * 8))
    if [ "$(lstm_parameters "$middle")" -le "$1" ]; then low=$middle; else high=$middle; fi
  done
  below=$(($1 - $(lstm_parameters "$low"))) above=$(($(lstm_parameters "$high") - $1))
  if [ $below -le $above ]; then echo $low; else echo $high; fi
}

failed=0
bigram=$("$weft" data info "$store" --bigram | awk '$1 == "bigram" { print $2; exit }')
[ -n "$bigram" ] || die "$store has no validation text"
echo "Width $width, $blocks blocks, $steps steps of $batch tokens in sequences of $length, lr $lr, $threads threads; text: $store."
echo
echo "| mixer | parameters | validation bits per byte | below the bigram | tokens/s | steps not finite |"
echo "|---|---|---|---|---|---|"
sizes=""
for mixer in "$@"; do
  name=$(echo "$mixer" | tr ',=' '--')
  train "$name" "$width" "mixer: {type: ${mixer%%,*}$(options_of "$mixer")}, mlp: {type: swiglu, width: $((2 * width))}" "\`$mixer\`"
  sizes="$sizes $(number "$(parameters "$name")")"
done
# shellcheck disable=SC2086
middle=$(printf '%s\n' $sizes | sort -n | awk '{ x[NR] = $1 } END { print x[int((NR + 1) / 2)] }')
if [ "${LSTM:-yes}" = yes ]; then
  w=$(lstm_width "$middle")
  train lstm-alone "$w" "$lstm" "LSTM alone, width $w"
fi
echo "| bigram | | $(printf '%.3f' "$bigram") | 0 | | |"
exit $failed
