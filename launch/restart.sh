#!/usr/bin/env bash
# Restart a command until it succeeds; a training run resumes from its last checkpoint.
#
#   launch/restart.sh python -m agent_jax.train --config configs/babyai.py --workdir runs/babyai
#
# It stops at status 0 (done, or saved on SIGTERM), at status 2 (a user error) and after RESTARTS (100) failures.
# SIGTERM and SIGINT are passed on as SIGTERM; it stops when the command has ended.
set -uo pipefail

if (($# == 0)); then
  echo "usage: launch/restart.sh COMMAND..." >&2
  exit 2
fi
child="" stopping=""
trap 'stopping=1; [[ -n "$child" ]] && kill -TERM "$child" 2>/dev/null' TERM INT

for ((failures = 0; ; failures++)); do
  if ((failures > ${RESTARTS:-100})); then
    echo "launch/restart.sh: ended with status $status again, after ${RESTARTS:-100} restarts; giving up" >&2
    exit "$status"
  fi
  "$@" &
  child=$!
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal interrupted the wait
    wait "$child"
    status=$?
  done
  if [[ -n "$stopping" ]] || ((status == 0 || status == 2)); then exit "$status"; fi
  echo "launch/restart.sh: ended with status $status; again in ${PAUSE:-10} s (restart $((failures + 1)))" >&2
  sleep "${PAUSE:-10}" &
  wait $!
  if [[ -n "$stopping" ]]; then exit "$status"; fi
done
