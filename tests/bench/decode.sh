#!/bin/sh
# Decoding after a short and after a long text: a token costs a recurrent mixer the same after both.
#
#   tests/bench/decode.sh [MIXER...]          gla mamba2 mlstm gated_deltanet by default
#
# Environment: WEFT (build/weft), TEXT (a text, repeated to the length; the texts of fortunes by default), SHORT (1000)
# and LONG (1000000) bytes of prompt, TOKENS (1000) decoded after it, ROUNDS (3), WIDTH (384), BLOCKS (2), THREADS (2),
# OUT (a temporary folder).
#
# `weft generate` reads the prompt and goes on for TOKENS bytes, untrained, after the one and the other prompt by turns.
# The middle one of the rounds counts. Fails where a token after the long prompt takes more than 1.1 times as long.
set -eu
# shellcheck source-path=SCRIPTDIR source=open.sh
. "$(dirname "$0")/open.sh"
short=${SHORT:-1000} long=${LONG:-1000000} tokens=${TOKENS:-1000}
rounds=${ROUNDS:-3} width=${WIDTH:-384} blocks=${BLOCKS:-2} threads=${THREADS:-2}

[ $# -gt 0 ] || set -- gla mamba2 mlstm gated_deltanet
find_text
unset OPENBLAS_CORETYPE

# once MIXER LENGTH: microseconds a token, and the peak memory, to be appended to a file for each.
once() {
  "$weft" generate "$out/$1" --prompt-file "$out/$2.txt" --tokens "$tokens" --ignore-end --stats 2>&1 > /dev/null |
    sed -n 's/.*; \([0-9]*\) tokens in \([0-9.]*\) s.*peak memory \(.*\)/\1 \2 \3/p' |
    awk '{ printf "%.2f %s %s\n", 1e6 * $2 / $1, $3, $4 }' >> "$out/$1.$2"
}
middle() { sort -n "$1" | awk '{ x[NR] = $1 } END { print x[int((NR + 1) / 2)] }'; }

text_of "$short" > "$out/$short.txt"
text_of "$long" > "$out/$long.txt"
"$weft" data build "$out/$short.txt" --validation 0 -o "$out/store.h5" --replace > /dev/null
failed=0
echo "$blocks blocks, width $width, $tokens tokens after a prompt of $short and of $long; $threads threads; middle of $rounds rounds."
echo
echo "| mixer | us a token after $short | after $long | ratio | peak memory | and there |"
echo "|---|---|---|---|---|---|"
for mixer in "$@"; do
  cat > "$out/$mixer.yaml" << EOF
run: {seed: 1, threads: $threads, dir: '$out/$mixer'}
data: {store: '$out/store.h5', seq_len: 256}
model:
  d_model: $width
  blocks: [{repeat: $blocks, mixer: {type: $mixer}, mlp: {type: swiglu}}]
train: {steps: 0, batch_tokens: 256, optimizer: {type: adamw}}
EOF
  "$weft" train "$out/$mixer.yaml" --overwrite > "$out/$mixer.log" 2>&1 || die "$(tail -n 2 "$out/$mixer.log")"
  rm -f "$out/$mixer.$short" "$out/$mixer.$long"
  round=0
  while [ $round -lt "$rounds" ]; do
    once "$mixer" "$short"
    once "$mixer" "$long"
    round=$((round + 1))
  done
  a=$(middle "$out/$mixer.$short") b=$(middle "$out/$mixer.$long")
  # shellcheck disable=SC2016 # the backquotes are the table's
  printf '| `%s` | %s | %s | %s | %s | %s |\n' "$mixer" "$a" "$b" "$(awk -v a="$a" -v b="$b" 'BEGIN { printf "%.3f", b / a }')" \
    "$(tail -n 1 "$out/$mixer.$short" | cut -d' ' -f2-)" "$(tail -n 1 "$out/$mixer.$long" | cut -d' ' -f2-)"
  awk -v a="$a" -v b="$b" 'BEGIN { exit b > 1.1 * a }' || failed=1
done
[ $failed = 0 ] || die "a token after $long took more than 1.1 times as long as one after $short"
