#!/usr/bin/env bash
# A slice of Cloud TPU with gcloud, on one host or many. Set NAME, ZONE and TYPE; RUNTIME, SPOT=1 and BUCKET are
# optional. DRY_RUN=1 prints the commands instead of running them.
#
#   export NAME=agent ZONE=us-central2-b TYPE=v4-32
#   launch/tpu_pod.sh create
#   launch/tpu_pod.sh install                                  # this checkout and its virtual environment, on all hosts
#   launch/tpu_pod.sh run --config configs/tpu_v4.py --workdir gs://BUCKET/RUN ...         # on all hosts, detached
#   launch/tpu_pod.sh logs                                     # follows the log of host 0; the others print nothing
#   launch/tpu_pod.sh stop                                     # saves a checkpoint and ends
#   launch/tpu_pod.sh delete
#
# `run` restarts after a failure. A preempted slice is gone: create, install and run again with the same workdir.
set -euo pipefail

: "${NAME:?set NAME, of the slice}" "${ZONE:?set ZONE, such as us-central2-b}"
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
tpu=(gcloud compute tpus tpu-vm)
archive="${TMPDIR:-/tmp}/agent_jax.tar.gz"

act() {
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
on() { act "${tpu[@]}" ssh "$NAME" --zone "$ZONE" --worker "$1" --command "$2"; }

case "${1:-}" in
create)
  act "${tpu[@]}" create "$NAME" --zone "$ZONE" --accelerator-type "${TYPE:?set TYPE, such as v4-32}" \
    --version "${RUNTIME:-tpu-ubuntu2204-base}" ${SPOT:+--spot}
  ;;
install)
  act tar -czf "$archive" -C "$checkout" --exclude='./.*' --exclude=./runs --exclude=./data .
  act "${tpu[@]}" scp "$archive" "$NAME:agent_jax.tar.gz" --zone "$ZONE" --worker all
  # The image's Python may be too old: uv installs one.
  on all 'set -e; rm -rf agent_jax; mkdir agent_jax; tar -xzf agent_jax.tar.gz -C agent_jax
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv
    python3 -m uv venv -q --clear --python 3.12 venv
    python3 -m uv pip install -q --python venv/bin/python -e "agent_jax[tpu,gcs]"'
  if [[ -n "${BUCKET:-}" ]]; then on all "agent_jax/launch/mount_bucket.sh $BUCKET /mnt/data"; fi
  ;;
run)
  shift
  on all "cd agent_jax && nohup launch/restart.sh ../venv/bin/python -m agent_jax.train$(printf ' %q' "$@") \
    >../run.log 2>&1 </dev/null &"
  ;;
logs) on 0 'tail -n 100 -F run.log' ;;
stop) on all "pkill -TERM -f '[l]aunch/restart.sh' || true" ;;
delete) act "${tpu[@]}" delete "$NAME" --zone "$ZONE" --quiet ;;
*)
  echo "usage: launch/tpu_pod.sh create | install | run FLAGS... | logs | stop | delete" >&2
  exit 2
  ;;
esac
