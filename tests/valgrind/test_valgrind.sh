#!/usr/bin/env bash
# usage: test_valgrind.sh WEFT CONFIG
# A store, two steps of training with evaluation and checkpoints, a resume and a sample, under valgrind: no invalid
# access, no use of uninitialised memory, nothing definitely lost. Valgrind knows no AVX-512, so v3 kernels run; with the
# environment set the program does not start itself again, which valgrind would not follow.
set -euo pipefail
weft=$1 config=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export WEFT_ISA=v3 OPENBLAS_CORETYPE=Haswell OMP_WAIT_POLICY=passive

checked() {
  valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite \
    "$weft" "$@" >"$work/out" 2>&1 || {
    cat "$work/out" >&2
    echo "failed under valgrind: weft $*" >&2
    exit 1
  }
}

for i in $(seq 60); do printf 'Text number %d, said and done.\n%%\n' "$i"; done >"$work/text"
small=(--set run.dir="$work/run" --set data.store="$work/store.h5" --set data.seq_len=32 --set model.d_model=20
  --set train.batch_tokens=64 --set eval.batches=1 --set eval.every=1 --set checkpoint.every=1)
checked data build "$work/text" --split % -o "$work/store.h5"
checked train "$config" "${small[@]}" --set train.steps=2
checked train "$config" "${small[@]}" --set train.steps=3 --resume
checked generate "$work/run" --prompt "Text" --tokens 5 --seed 1
echo "no errors, nothing lost"
