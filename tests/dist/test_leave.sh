#!/usr/bin/env bash
# usage: test_leave.sh PROGRAM MPIRUN...
# One of three ranks leaves, by wf_comm_abort or by returning from main while it holds a communicator; the others wait
# for it. Both ways the job ends at once with the rank's exit code.
set -uo pipefail
program=$1
shift
for how in abort return; do
  timeout 60 "$@" "$program" $how
  code=$?
  if [ $code -ne 7 ]; then
    echo "$how: exit code $code instead of 7" >&2
    exit 1
  fi
done
echo "the job ended both ways"
