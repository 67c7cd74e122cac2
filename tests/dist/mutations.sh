#!/usr/bin/env bash
# The tests of sequences over ranks can fail: each of seven mistakes that such code is prone to is made in a copy of
# the tree, and some test must notice.
#
#     tests/dist/mutations.sh [BUILD]
#
# works on the last commit, in a folder of its own; BUILD (build) is where CMake's settings are taken from. Takes a
# few minutes; prints a line for each mistake and exits with 1 where one went unnoticed.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath "${1:-build}")
work=$(mktemp -d)
trap 'git worktree remove --force "$work/tree" >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
git worktree add --quiet --detach "$work/tree" HEAD
cd "$work/tree"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

tests=(test_layers_ranks test_dist_chain test_dist_ring test_experiments_parallel)
programs=(weft "${tests[@]}")
generator=$(sed -n 's/^CMAKE_GENERATOR:INTERNAL=//p' "$build/CMakeCache.txt")
launcher=$(sed -n 's/^CMAKE_C_COMPILER_LAUNCHER:[A-Z]*=//p' "$build/CMakeCache.txt")
cmake -S . -B build -G "$generator" -DCMAKE_BUILD_TYPE=Release ${launcher:+-DCMAKE_C_COMPILER_LAUNCHER="$launcher"} \
  -DWEFT_TESTS=ON -DWEFT_MPI=ON >/dev/null

make_programs() { cmake --build build -j "$(nproc)" --target "${programs[@]}" >"$work/log" 2>&1; }
run_tests() { ctest --test-dir build -R "^($(IFS='|' && echo "${tests[*]}"))\$" --stop-on-failure >"$work/log" 2>&1; }

make_programs || {
  tail "$work/log" >&2
  exit 2
}
run_tests || {
  tail -30 "$work/log" >&2
  echo "the tests fail without any mistake" >&2
  exit 2
}

unnoticed=0
# mistake WHAT FILE SED: what the mistake is, and how to make it.
mistake() {
  local what=$1 file=$2 change=$3
  sed -i -E "$change" "$file"
  if git diff --quiet; then
    printf '%-34s the text to change is no longer in %s\n' "$what" "$file"
    unnoticed=1
    return
  fi
  if ! make_programs; then
    printf '%-34s does not compile\n' "$what"
    unnoticed=1
  elif run_tests; then
    printf '%-34s NOT NOTICED\n' "$what"
    unnoticed=1
  else
    printf '%-34s noticed by %s\n' "$what" "$(sed -n 's/.*- \(test_[a-z_]*\).*(Failed.*/\1/p' "$work/log" | head -1)"
  fi
  git checkout --quiet -- .
}

mistake "the entering state dropped" dist/segments_ways.c 's/wf_chain_state\(x->chain, k\)/NULL/'
mistake "the halo dropped" dist/halo.c 's/return run_exchange\(call->ctx, p, false.*;/return WF_OK;/'
mistake "a wrong exponent of the decay" core/ops/fade.c 's/(int64_t t = r->begin)(; t < r->begin \+ r->len)/\1 + 1\2/'
mistake "labels not shifted" layers/stream.c 's/t->labels \+ r->begin \+ from/t->ids + r->begin + from/'
mistake "maps composed in the other order" dist/chain.c \
  's/later->A, later->B, m\.A \? before->A : NULL,/before->A, before->B, m.A ? later->A : NULL,/; s/^( +)before->B, m\.A, m\.B\)/\1later->B, m.A, m.B)/'
mistake "tokens counted on one rank only" experiments/parallel.c 's/\(int64_t\)sum\[1\]/t->labels/'
mistake "stale keys and values backward" dist/ring.c 's/&t->here, call, pull_stage/\&t->was, call, pull_stage/'
exit $unnoticed
