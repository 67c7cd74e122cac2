#!/bin/sh
# Weft against PyTorch, row by row and turn by turn on one machine, in float32:
#
#   tests/bench/compare.sh [ROW...]           nano small gpt2 attention decode; all of them by default
#
# Environment: WEFT (build/weft), PYTHON (python3, with torch), THREADS (2), ROUNDS (3), SECONDS_EACH (4).
# A round measures Weft, then PyTorch eager, then compiled. Of a program's medians over the rounds the middle one
# counts, and of eager and compiled the faster. Printed for each row: seconds, Weft's time over its products alone
# and over its floor, PyTorch's time over Weft's, and both peaks of resident memory.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
weft=${WEFT:-$here/../../build/weft} python=${PYTHON:-python3} threads=${THREADS:-2}
rounds=${ROUNDS:-3} seconds=${SECONDS_EACH:-4}
[ $# -gt 0 ] || set -- nano small gpt2 attention decode
out=$(mktemp)
trap 'rm -f "$out"' EXIT

# Settings that slow one program and not the other have no place here.
unset OPENBLAS_CORETYPE OPENBLAS_NUM_THREADS OMP_WAIT_POLICY GOMP_SPINCOUNT MKL_NUM_THREADS WEFT_ISA
export OMP_NUM_THREADS="$threads"

for row in "$@"; do
  round=0
  while [ "$round" -lt "$rounds" ]; do
    "$weft" bench "$row" --json --seconds "$seconds" >> "$out"
    for mode in eager compile; do
      "$python" "$here/peer_torch.py" "$row" --mode "$mode" --threads "$threads" --seconds "$seconds" >> "$out"
    done
    round=$((round + 1))
  done
done

"$python" - "$out" <<'PYTHON'
import json, statistics, sys

rows = {}
for line in open(sys.argv[1]):
    r = json.loads(line)
    if "skipped" not in r:
        rows.setdefault(r["name"], {}).setdefault(r["mode"], []).append(r)

def middle(runs, key):
    return statistics.median(r[key] for r in runs)

print(f"{'row':<10} {'weft ms':>9} {'torch ms':>9} {'mode':<8} {'torch/weft':>10} {'x products':>10} {'x floor':>8} "
      f"{'weft MB':>8} {'torch MB':>8}")
for name, modes in rows.items():
    weft = modes.pop("weft")
    peer = min(modes, key=lambda mode: middle(modes[mode], "median_s"))
    w, p = middle(weft, "median_s"), middle(modes[peer], "median_s")
    ratio = f"{statistics.median(r['median_s'] / r['products_s'] for r in weft):.2f}" if "products_s" in weft[0] else "-"
    floor = statistics.median(r["median_s"] / r["floor_s"] for r in weft)
    print(f"{name:<10} {1e3 * w:9.3f} {1e3 * p:9.3f} {peer:<8} {p / w:10.2f} {ratio:>10} {floor:8.2f} "
          f"{max(r['peak_rss_mb'] for r in weft):8.0f} {min(r['peak_rss_mb'] for r in modes[peer]):8.0f}")
PYTHON
