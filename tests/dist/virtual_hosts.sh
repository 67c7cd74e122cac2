#!/usr/bin/env bash
# Several hosts on one machine: network namespaces on a bridge, each link limited to a rate, under one mpirun.
#
#     tests/dist/virtual_hosts.sh [-n HOSTS] [-r MBIT] [-o] COMMAND...
#
# runs COMMAND as one rank on each of HOSTS (4) virtual hosts with links of MBIT (800) megabits a second. Without a
# COMMAND it trains a small model over the hosts with every sequence cut over all of them, trains it in one process
# too, and compares the losses. Then, or with -o alone, it measures how much of the exchange is hidden behind the
# computing: at least half, in a shape where weft plan says that it can be. Needs root, ip and tc (Debian: iproute2)
# and mpirun; without them it says so and exits with 77. WEFT names the program (build/weft).
#
# Hidden: the same steps run with the links at their rate and without a limit. What a rank waits for its peers and for
# a core is in both, so the difference of their times is the exchange that is exposed. The exchange itself is bytes /
# rate, of the bytes that weft plan counts (tests/experiments/test_plan.c holds them against real steps).
set -euo pipefail

hosts=4 rate=800 overlap_only=
while getopts n:r:o option; do
  case $option in
  n) hosts=$OPTARG ;;
  r) rate=$OPTARG ;;
  o) overlap_only=1 ;;
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

# links MBIT: what every link carries, each way; 0: no limit.
links() {
  local i
  for ((i = 0; i < hosts; i++)); do
    link "$1" eth0 ip netns exec $job-$i tc && link "$1" ${job}e$i tc || return 1
  done
}
link() { # MBIT DEVICE TC...
  if [ "$1" = 0 ]; then
    "${@:3}" qdisc del dev "$2" root
  else
    "${@:3}" qdisc replace dev "$2" root tbf rate "$1mbit" burst 256kb latency 200ms
  fi
}

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
    echo "$at slots=1" >>"$work/hosts"
  done
  links "$rate"
}
make_hosts || skip "this system gives no network namespaces, bridges or rate limits"

# What mpirun starts instead of ssh: the last number of the address names the namespace. Hosts have no files in common:
# each has a folder of its own where Open MPI keeps those of a job.
cat >"$work/agent" <<EOF
#!/bin/sh
host=\$((\${1##*.} - 1))
shift
mkdir -p $work/tmp\$host
export TMPDIR=$work/tmp\$host
exec ip netns exec $job-\$host sh -c "\$*"
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

# text N: letters of no meaning, which depend on the letters before.
text() {
  awk -v n="$1" 'BEGIN { srand(1); x = 1; for (i = 0; i < n; i++) { x = (x * 5 + int(rand() * 7)) % 26; printf "%c", 97 + x } }' >text
  "$weft" data build text --validation 0.1 -o text.h5 --replace >/dev/null
}

# config SEQ_LEN BATCH STEPS WIDTH BLOCK...
config() {
  cat <<EOF
data: {store: text.h5, seq_len: $1}
model:
  d_model: $4
  blocks:
$(printf '    - %s\n' "${@:5}")
train: {steps: $3, batch_tokens: $2, optimizer: {type: adamw, lr: 1.0e-3}, schedule: {type: constant}}
eval: {every: 0, batches: 1}
checkpoint: {every: 0}
log: {every: 1}
parallel: {sequence: $hosts}
EOF
}

# train NAME CONFIG OPTION...: over the hosts.
train() {
  over_hosts "$weft" train "$2" --set run.name="$1" --overwrite "${@:3}" >"$1.log" && return
  cat "$1.log" >&2
  exit 1
}

# field NAME: the numbers of that name on lines of JSON.
field() { sed -n "s/.*\"$1\": *\([^,}]*\).*/\1/p"; }

compare_losses() {
  text 60000
  config 512 1024 20 32 "{mixer: {type: gated_deltanet, heads: 2}, mlp: {type: swiglu, width: 48}}" \
    "{mixer: {type: ${MIXER:-attention, heads: 2}}, mlp: {type: swiglu, width: 48}}" >hosts.yaml
  OMP_NUM_THREADS=1 "$weft" train hosts.yaml --set run.name=alone --set parallel.sequence=1 >alone.log
  train over hosts.yaml
  grep -hE 'ranks|warning' over.log
  for run in alone over; do field loss <runs/$run/metrics.jsonl >$run.loss; done
  paste alone.loss over.loss | awk -v hosts="$hosts" '
    { d = ($2 - $1) / $1; if (d < 0) d = -d; if (d > worst) worst = d; n++ }
    END {
      printf "%d steps over %d virtual hosts: losses differ by at most %.1e of one process'"'"'s\n", n, hosts, worst
      exit !(n == 20 && worst <= 1e-5)
    }'
}

median() { sort -g "$1" | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }

# A ring: what it computes grows with the square of the tokens, what it sends with their number. The two rates take
# turns, so that what else the machine does meets both.
overlap() {
  local T=${T:-12288} steps=${STEPS:-4} rounds=${ROUNDS:-3} i of
  text $((2 * T * (steps + 2)))
  config "$T" "$T" "$steps" 256 "{repeat: 2, mixer: {type: attention, heads: 4, kv_heads: 2}}" >ring.yaml
  OMP_NUM_THREADS=1 "$weft" plan ring.yaml --set parallel.attention=ring --ranks "$hosts" --link "${rate}Mb/s,100us" \
    --json | tail -1 >plan.json
  rm -f ./*.steps
  for ((i = 0; i < rounds; i++)); do
    for of in "$rate" 0; do
      links "$of"
      train "at$of" ring.yaml --set parallel.attention=ring
      field step_s <"runs/at$of/metrics.jsonl" | tail -n +2 >>"at$of.steps"
    done
    links "$rate"
  done
  # Of a rank: messages as they are; of the bytes of a collective all but its own share, once for each direction.
  grep -o '"[a-z]*":{"messages"[^}]*}' plan.json | while read -r part; do
    for name in message_bytes call_bytes seconds waited; do field $name <<<"$part"; done | paste -s
  done | awk -v limited="$(median "at$rate.steps")" -v free="$(median at0.steps)" -v hosts="$hosts" -v rate="$rate" -v T="$T" '
    { bytes += $1 + $2 * (hosts - 1) / hosts; exchange += $3; waited += $4 }
    END {
      planned = 100 * (1 - waited / exchange)
      moving = 8e-6 * bytes / rate; exposed = limited - free; hidden = 100 * (1 - exposed / moving)
      printf "%d tokens over %d virtual hosts: a step takes %.0f ms at %d Mb/s, %.0f ms without a limit\n", T, hosts,
        1e3 * limited, rate, 1e3 * free
      printf "exchange %.0f ms, exposed %.0f ms, hidden %.0f %% (weft plan: exchange %.0f ms, hidden %.0f %%)\n",
        1e3 * moving, 1e3 * exposed, hidden, 1e3 * exchange, planned
      if (planned < 50) print "weft plan does not expect half of it to be hidden"
      exit !(planned >= 50 && hidden >= 50)
    }'
}

[ "$overlap_only" ] || compare_losses
overlap
