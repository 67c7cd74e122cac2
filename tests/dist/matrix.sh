#!/usr/bin/env bash
# The whole matrix of sequences over ranks: every primitive and every layer, by layout, transport and rows, on 1, 2, 3,
# 4, 5 and 8 ranks, uneven and empty parts included. float64 within 1e-10 of one process, float32 at most twice its
# error.
#
#     tests/dist/matrix.sh [BUILD] [threads] [2] [3] [4] [5] [8]
#
# builds the programs in BUILD (build) and runs them on ranks that are threads, and under mpirun on so many processes;
# without a list all of it (half an hour on two cores). Prints what was run, and exits with 1 where something failed.
# WEFT_MATRIX_PROGRAMS names some of the programs, CK_RUN_CASE one of their cases: of test_layers_ranks a mixer.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=build
if [[ $# -gt 0 && -d $1 ]]; then
  build=$1
  shift
fi
if [[ $# -gt 0 ]]; then pieces=("$@"); else pieces=(threads 2 3 4 5 8); fi
read -r -a programs <<<"${WEFT_MATRIX_PROGRAMS:-test_dist_chain test_dist_ring test_layers_ranks}"
notes=$(mktemp)
trap 'rm -f "$notes" "$notes.out"' EXIT
export WEFT_MATRIX=$notes OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive CK_DEFAULT_TIMEOUT=3000
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1

cmake --build "$build" -j "$(nproc)" --target "${programs[@]}" >"$notes.out" 2>&1 || {
  tail -20 "$notes.out" >&2
  exit 2
}

failed=0
for piece in "${pieces[@]}"; do
  for program in "${programs[@]}"; do
    command=("$build/tests/$program")
    [[ $piece == threads ]] || command=(mpirun -n "$piece" "${command[@]}")
    if ! "${command[@]}" >"$notes.out" 2>&1; then
      tail -30 "$notes.out" >&2
      echo "failed: ${command[*]}" >&2
      failed=1
    fi
  done
done

# table TITLE FIELD: cases by a field of the notes, with the worst errors.
table() {
  printf '\n%-44s %7s %7s %7s %12s %12s %9s\n' "$1" cases threads mpi "f64 error" "f32 error" "of P = 1"
  awk -F'\t' -v field="$2" '
    { k = $field; n[k]++; if ($1 == "mpi") m[k]++
      if ($6 == "f64") { if ($8 > d[k]) d[k] = $8 }
      else { if ($8 > s[k]) s[k] = $8; if ($9 > 1e-8 && $8 / $9 > r[k]) r[k] = $8 / $9 } }
    END { for (k in n) printf "%-44s %7d %7d %7d %12.1e %12.1e %9.2f\n", k, n[k], n[k] - m[k], m[k], d[k], s[k], r[k] }
  ' "$notes" | sort
}
table "primitive or layers" 2
table "layout" 3
table "transport" 4
table "rows" 5
table "ranks" 7
printf '\n%d cases, %s\n' "$(wc -l <"$notes")" "$([[ $failed == 0 ]] && echo "all agree" || echo "SOME FAILED")"
exit $failed
