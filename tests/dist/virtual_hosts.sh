#!/usr/bin/env bash
# Several hosts on one machine: network namespaces on a bridge, each link limited to a rate, under one mpirun.
#
#     tests/dist/virtual_hosts.sh [-n HOSTS] [-r RATE] COMMAND...
#
# runs COMMAND as one rank on each of HOSTS (4) virtual hosts with links of RATE (800mbit). Without a COMMAND it
# trains a small model over the hosts with every sequence cut over all of them, trains it in one process too, and
# compares the losses. Needs root, ip and tc (Debian: iproute2) and mpirun; without them it says so and exits with
# 77. WEFT names the program (build/weft).
set -euo pipefail

hosts=4 rate=800mbit
while getopts n:r: option; do
  case $option in
  n) hosts=$OPTARG ;;
  r) rate=$OPTARG ;;
  *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))

skip() {
  printf 'SKIPPED: virtual hosts were NOT tried: %s\n' "$*" >&2
  exit 77
}
[ "$(id -u)" = 0 ] || skip "network namespaces need root"
for program in ip tc mpirun; do command -v $program >/dev/null || skip "there is no $program here"; done

job=wf$$ work=$(mktemp -d)
cleanup() {
  local i
  for ((i = 0; i < hosts; i++)); do ip netns del $job-$i 2>/dev/null || true; done
  ip link del $job 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

# Names of devices are at most 15 letters long.
make_hosts() {
  local i at
  ip link add $job type bridge && ip link set $job up || return 1
  ip addr add 10.213.7.254/24 dev $job
  for ((i = 0; i < hosts; i++)); do
    at=10.213.7.$((i + 1))
    ip netns add $job-$i
    ip link add ${job}e$i type veth peer name eth0 netns $job-$i
    ip link set ${job}e$i master $job up
    ip -n $job-$i link set lo up
    ip -n $job-$i addr add $at/24 dev eth0
    ip -n $job-$i link set eth0 up
    ip netns exec $job-$i tc qdisc add dev eth0 root tbf rate "$rate" burst 256kb latency 200ms
    tc qdisc add dev ${job}e$i root tbf rate "$rate" burst 256kb latency 200ms
    echo "$at slots=1" >>"$work/hosts"
  done
}
make_hosts || skip "this system gives no network namespaces, bridges or rate limits"

# What mpirun starts instead of ssh: the last number of the address names the namespace.
cat >"$work/agent" <<EOF
#!/bin/sh
host=\$1
shift
exec ip netns exec $job-\$((\${host##*.} - 1)) sh -c "\$*"
EOF
chmod +x "$work/agent"

over_hosts() {
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --hostfile "$work/hosts" -n "$hosts" \
    --mca plm_rsh_agent "$work/agent" --mca plm rsh --mca btl tcp,self --mca btl_tcp_if_include 10.213.7.0/24 \
    --mca oob_tcp_if_include 10.213.7.0/24 --mca mpi_yield_when_idle 1 --bind-to none -x OMP_NUM_THREADS=1 \
    -x OMP_WAIT_POLICY=passive "$@"
}

if [ $# -gt 0 ]; then
  over_hosts "$@"
  exit
fi

weft=$(realpath "${WEFT:-build/weft}")
cd "$work"
# Text of no meaning: letters that depend on the letters before.
awk 'BEGIN { srand(1); x = 1; for (i = 0; i < 60000; i++) { x = (x * 5 + int(rand() * 7)) % 26; printf "%c", 97 + x } }' >text
"$weft" data build text --validation 0.1 -o text.h5 >/dev/null
cat >hosts.yaml <<EOF
data: {store: text.h5, seq_len: 512}
model:
  d_model: 32
  blocks:
    - {mixer: {type: gated_deltanet, heads: 2}, mlp: {type: swiglu, width: 48}}
    - {mixer: {type: ${MIXER:-attention, heads: 2}}, mlp: {type: swiglu, width: 48}}
train: {steps: 20, batch_tokens: 1024, optimizer: {type: adamw, lr: 1.0e-3}, schedule: {type: constant}}
eval: {every: 0}
checkpoint: {every: 0}
log: {every: 1}
EOF
OMP_NUM_THREADS=1 "$weft" train hosts.yaml --set run.name=alone >alone.log
over_hosts "$weft" train hosts.yaml --set run.name=over --set parallel.sequence="$hosts" >over.log || {
  cat over.log >&2
  exit 1
}
grep -hE 'ranks|warning' over.log
for run in alone over; do sed -n 's/.*"loss": *\([^,]*\),.*/\1/p' runs/$run/metrics.jsonl >$run.loss; done
paste alone.loss over.loss | awk -v hosts="$hosts" '
  { d = ($2 - $1) / $1; if (d < 0) d = -d; if (d > worst) worst = d; n++ }
  END {
    printf "%d steps over %d virtual hosts: losses differ by at most %.1e of one process'"'"'s\n", n, hosts, worst
    exit !(n == 20 && worst <= 1e-5)
  }'
