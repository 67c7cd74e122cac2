#!/bin/sh
# Weft's recurrences against the public pure-PyTorch chunk forms, row by row and turn by turn on one machine, float32,
# forward and backward, B 1, 4 heads:
#
#   tests/bench/compare_scans.sh [MEMBER...]      the rows of peer_mixers.py; all of them by default
#
# Environment: WEFT (build/weft), PYTHON (python3, with what peer_mixers.py names), THREADS (2), ROUNDS (3), TOKENS
# (2048), SIZE (64, of a head), SECONDS_EACH (2). Of a program's medians over the rounds the middle one counts.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
weft=${WEFT:-$here/../../build/weft} python=${PYTHON:-python3} threads=${THREADS:-2}
rounds=${ROUNDS:-3} tokens=${TOKENS:-2048} size=${SIZE:-64} seconds=${SECONDS_EACH:-2}
[ $# -gt 0 ] || set -- plain scalar delta gated_delta channel_delta mlstm selective
out=$(mktemp)
trap 'rm -f "$out"' EXIT

# Settings that slow one program and not the other have no place here.
unset OPENBLAS_CORETYPE OPENBLAS_NUM_THREADS OMP_WAIT_POLICY GOMP_SPINCOUNT MKL_NUM_THREADS WEFT_ISA
export OMP_NUM_THREADS="$threads"

for row in "$@"; do
  round=0
  while [ "$round" -lt "$rounds" ]; do
    "$weft" bench scan "$row" --json --size "$size" --seq-len "$tokens" --seconds "$seconds" >> "$out"
    "$python" "$here/peer_mixers.py" "$row" --threads "$threads" --tokens "$tokens" --size "$size" \
      --seconds "$seconds" 2> /dev/null >> "$out"
    round=$((round + 1))
  done
done

"$python" - "$out" <<'PYTHON'
import json, statistics, sys

weft, peer, what = {}, {}, {}
for line in open(sys.argv[1]):
    r = json.loads(line)
    if "member" in r:
        weft.setdefault(r["member"], []).append(r["both_s"] / r["T"])
    elif "skipped" in r:
        print(f"{r['name']}: no peer: {r['skipped']}")
    else:
        peer.setdefault(r["name"], []).append(r["median_s"] / r["tokens"])
        what[r["name"]] = r["peer"]

print(f"{'member':<14} {'weft tokens/s':>14} {'peer tokens/s':>14} {'weft/peer':>10}  peer")
for name in weft:
    if name in peer:
        w, p = statistics.median(weft[name]), statistics.median(peer[name])
        print(f"{name:<14} {1 / w:14.0f} {1 / p:14.0f} {p / w:10.1f}  {what[name]}")
PYTHON
