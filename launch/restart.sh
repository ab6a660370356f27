#!/usr/bin/env bash
# A command again and again until it ends well; a training goes on from the last step that it saved.
#
#   launch/restart.sh python -m agent_jax.train --config configs/babyai.py --workdir runs/babyai
#
# Status 0 (done, or saved on SIGTERM) and 2 (something for you to mend) end it, and so do RESTARTS failures (100).
# SIGTERM and SIGINT are handed on as SIGTERM, and end it with the command.
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
  while kill -0 "$child" 2>/dev/null; do # a signal has cut the waiting short
    wait "$child"
    status=$?
  done
  if [[ -n "$stopping" ]] || ((status == 0 || status == 2)); then exit "$status"; fi
  echo "launch/restart.sh: ended with status $status; again in ${PAUSE:-10} s (restart $((failures + 1)))" >&2
  sleep "${PAUSE:-10}" &
  wait $!
  if [[ -n "$stopping" ]]; then exit "$status"; fi
done
