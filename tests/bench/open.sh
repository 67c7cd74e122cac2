# shellcheck shell=sh
# Sourced by the scripts beside it: what they open with.
#
#   weft   the program: WEFT, or build/weft
#   out    the folder OUT, or a temporary one that goes when the script ends

die() {
  echo "${0##*/}: $*" >&2
  exit 1
}

weft=${WEFT:-$(dirname "$0")/../../build/weft}
[ -x "$weft" ] || die "there is no $weft; set WEFT"
weft=$(realpath "$weft")

if [ -n "${OUT:-}" ]; then
  mkdir -p "$OUT"
  out=$(realpath "$OUT")
else
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi

# text: the path of TEXT, or of the texts of the package fortunes.
find_text() {
  text=${TEXT:-}
  if [ -z "$text" ]; then
    text=$out/text
    find /usr/share/games/fortunes -type f ! -name '*.*' -exec cat {} + > "$text" 2> /dev/null || true
  fi
  [ -s "$text" ] || die "set TEXT to a text, or install the package fortunes"
  text=$(realpath "$text")
}

# text_of BYTES: prints so many, of the text as often as it takes.
text_of() {
  text_size=$(wc -c < "$text") text_left=$1
  while [ "$text_left" -gt "$text_size" ]; do
    cat "$text"
    text_left=$((text_left - text_size))
  done
  head -c "$text_left" "$text"
}

# four_layers MIXER LENGTH TOKENS: prints a model of width 256, in heads of 64 channels where a mixer has heads, that
# trains for STEPS steps of so many tokens, in sequences of LENGTH of the store text.h5.
four_layers() {
  case $1 in
  mamba | mingru | minlstm | base_conv) typed="{type: $1}" ;;
  mamba2) typed="{type: mamba2, head_dim: 64}" ;;
  hgrn2) typed="{type: hgrn2, expand_ratio: 64}" ;;
  *) typed="{type: $1, heads: 4}" ;;
  esac
  cat << EOF
data: {store: text.h5, seq_len: $2}
model:
  d_model: 256
  blocks: [{repeat: 4, mixer: $typed, mlp: {type: swiglu}}]
train: {steps: $STEPS, batch_tokens: $3, optimizer: {type: adamw, lr: 1.0e-4}, schedule: {type: constant}}
eval: {every: 0, batches: 1}
checkpoint: {every: 0}
log: {every: 1}
EOF
}
