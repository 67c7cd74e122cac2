#!/bin/sh
# Scans over 64 and over 1,024 ranks, SIMULATED: Weft's own transports (dist/chain.c, dist/comm_mpi.c) on SimGrid's SMPI
# (Debian's libsimgrid-dev), beside the formulas by which they are chosen (dist/cost.c).
#
#   tests/bench/simulate.sh
#
# Environment: RANKS ("64 1024"), LATENCY (10e-6, seconds of a message), BANDWIDTH (12.5e9, bytes/s of a link: 100 Gb/s),
# SIZES ("2048 65536 1048576", bytes of a state), MEMORY (8589934592, bytes that the ranks may fill; see below), OUT
# (a temporary folder for the build).
#
# Each rank has a link of its own into a network that never fills. A message takes latency + bytes / bandwidth (SimGrid's
# model CM02, without the factors that SMPI has for real machines), both ways at once, and computing takes no time. What is
# gathered goes by Bruck's algorithm and the ranks wait for it: SMPI's own way, a message from each to each at once, takes it
# hours with a thousand ranks. They live in one process: a case that needs more than MEMORY runs in memory that all ranks
# share, where what they receive is not checked; a gather, for which MPI takes memory too, is left out.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
ranks=${RANKS:-64 1024} latency=${LATENCY:-10e-6} bandwidth=${BANDWIDTH:-12.5e9}
sizes=${SIZES:-2048 65536 1048576} memory=${MEMORY:-8589934592}
command -v smpicc > /dev/null || {
  echo "simulate.sh: SKIPPED: there is no smpicc; install libsimgrid-dev" >&2
  exit 77
}
if [ -n "${OUT:-}" ]; then
  out=$OUT
  mkdir -p "$out"
else
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi

cmake -S "$here" -B "$out" -DCMAKE_BUILD_TYPE=Release -DCMAKE_POSITION_INDEPENDENT_CODE=ON -DWEFT_MPI=OFF -DWEFT_CUDA=OFF \
  -DWEFT_TESTS=OFF > "$out.log" 2>&1 || {
  cat "$out.log" >&2
  exit 1
}
rm -f "$out.log"
cmake --build "$out" -j "$(nproc)" --target weft_dist > "$out/log" 2>&1 || {
  tail -n 20 "$out/log" >&2
  exit 1
}
libraries=$(find "$out" -name 'libweft_dist.a' -o -name 'libweft_autograd.a' -o -name 'libweft_core.a')
# shellcheck disable=SC2086 # a list of files
smpicc -O2 -std=gnu17 -DWEFT_MPI=1 -I"$here" "$here/tests/bench/simulate.c" "$here/dist/comm_mpi.c" \
  -Wl,--wrap=aligned_alloc -Wl,--wrap=free -Wl,--wrap=MPI_Init_thread -Wl,--wrap=atexit -Wl,--wrap=MPI_Iallgatherv -Wl,--start-group $libraries -Wl,--end-group -lopenblas -lxxhash -lgomp \
  -o "$out/simulate" > "$out/log" 2>&1 || {
  tail -n 20 "$out/log" >&2
  exit 1
}

# run RANKS STATES WAY:BLOCKS:BYTES: a rank holds STATES of them.
run() {
  n=$1 all=$(($1 * $2 * ${3##*:}))
  shift 2
  shared=
  [ "$all" -le "$memory" ] || case $1 in
  gather*)
    printf '%6d %-8s %6s %10d   left out: it needs %d GiB\n' "$n" gather "" "${1##*:}" $((all >> 30))
    return
    ;;
  *) shared=1 ;;
  esac
  half=$(awk -v l="$latency" 'BEGIN { printf "%.9g", l / 2 }')
  cat > "$out/platform.xml" << XML
<?xml version='1.0'?>
<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">
<platform version="4.1">
  <cluster id="all" prefix="n" suffix="" radical="0-$((n - 1))" speed="1Gf" bw="${bandwidth}Bps" lat="${half}s"
           sharing_policy="SPLITDUPLEX"/>
</platform>
XML
  i=0
  while [ "$i" -lt "$n" ]; do
    echo "n$i"
    i=$((i + 1))
  done > "$out/hosts"
  env OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 ${shared:+WEFT_SIMULATE_SHARED=1} \
    smpirun -np "$n" -platform "$out/platform.xml" -hostfile "$out/hosts" --log=root.thres:error \
    --cfg=smpi/simulate-computation:no --cfg=smpi/test:0 --cfg=smpi/iprobe:0 --cfg=smpi/privatization:no --cfg=contexts/factory:thread \
    --cfg=network/model:CM02 --cfg=network/crosstraffic:0 --cfg=smpi/shared-malloc:global --cfg=smpi/shared-malloc-blocksize:268435456 \
    --cfg=smpi/allgatherv:ompi_bruck \
    "$out/simulate" "$latency" "$bandwidth" "$@" > "$out/got" 2> "$out/log" || {
    cat "$out/log" >&2
    exit 1
  }
  awk '{ printf "%6d %-8s %6d %10d %14.4g %14.4g %7.2f\n", $1, $2, $3, $4, $5, $6, $5 / $6 }' "$out/got"
}

echo "SIMULATED (SimGrid's SMPI): $latency s a message, $bandwidth bytes/s a link, computing takes no time"
printf '%6s %-8s %6s %10s %14s %14s %7s\n' ranks way blocks bytes "simulated ms" "formula ms" ratio
for n in $ranks; do
  for size in $sizes; do
    run "$n" 4 "relay:1:$size"
    run "$n" 4 "relay:0:$size"
    run "$n" 40 "log:1:$size"
    run "$n" $((3 * n)) "gather:1:$size"
  done
done
