#!/usr/bin/env bash
# One run in several processes on this machine. They connect through a free port of the loopback device.
#
#   launch/local.sh 2 --config configs/tpu_v4.py:smoke --workdir runs/smoke
#
# The devices of config.mesh are divided evenly. Only process 0 prints. PYTHON chooses the interpreter. To restart all
# processes after a failure: launch/restart.sh launch/local.sh 2 ... Exit status: 0, or the first failed process's.
set -uo pipefail

processes="${1:-}"
if ! [[ "$processes" =~ ^[1-9][0-9]*$ ]] || (($# < 2)); then
  echo "usage: launch/local.sh PROCESSES --config FILE [--workdir DIR ...]" >&2
  exit 2
fi
shift
python="${PYTHON:-python}"
port="$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')" || exit

pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
for ((i = 0; i < processes; i++)); do
  "$python" -m agent_jax.train --coordinator "127.0.0.1:$port" --processes "$processes" --process "$i" "$@" &
  pids+=("$!")
done

status=0
for pid in "${pids[@]}"; do
  wait "$pid"
  ended=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal interrupted the wait
    wait "$pid"
    ended=$?
  done
  if ((status == 0)); then status=$ended; fi
done
exit "$status"
