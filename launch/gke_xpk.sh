#!/usr/bin/env bash
# Slices of Cloud TPU in Google Kubernetes Engine, with XPK (pip install xpk; it needs gcloud and kubectl).
# Set CLUSTER, NAME, TYPE, SLICES, ZONE and PROJECT. DRY_RUN=1 prints the commands instead of running them.
#
#   export CLUSTER=agents NAME=agent TYPE=v4-32 SLICES=2 ZONE=us-central2-b PROJECT=my-project
#   launch/gke_xpk.sh create                                   # the cluster; SPOT=1: spot machines
#   launch/gke_xpk.sh run --config configs/tpu_v4.py --workdir gs://BUCKET/RUN --config.mesh.replica=2 ...
#   launch/gke_xpk.sh logs                                     # follows the log of the first host
#   launch/gke_xpk.sh stop                                     # saves a checkpoint and ends
#   launch/gke_xpk.sh delete                                   # the cluster
#
# XPK builds an image with the code. GKE restarts a failed or preempted job set on the same workdir; status 2 (a user
# error) ends it.
set -euo pipefail

: "${CLUSTER:?set CLUSTER}" "${ZONE:?set ZONE, such as us-central2-b}" "${PROJECT:?set PROJECT}"
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
where=(--cluster "$CLUSTER" --zone "$ZONE" --project "$PROJECT")

act() {
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
size() { sized=(--tpu-type "${TYPE:?set TYPE, such as v4-32}" --num-slices "${SLICES:-1}"); }
job() { : "${NAME:?set NAME, of the job set}"; }

case "${1:-}" in
create)
  size
  kind=--on-demand && [[ -z "${SPOT:-}" ]] || kind=--spot
  act xpk cluster create "${where[@]}" "${sized[@]}" "$kind"
  ;;
run)
  shift
  size && job
  image="$(mktemp -d)" # a copy of the checkout without .venv and runs
  trap 'rm -rf "$image"' EXIT
  act cp -R "$checkout"/{agent_jax,configs,setup.py,pyproject.toml,README.md} "$image"
  # 75: a host was lost; 1: any other failure. XPK itself restarts after exit codes of signals.
  act xpk workload create "${where[@]}" "${sized[@]}" --workload "$NAME" \
    --base-docker-image "${BASE:-python:3.12}" --script-dir "$image" \
    --max-restarts "${RESTARTS:-100}" --restart-on-exit-codes 1,75 --termination-grace-period-seconds 180 \
    --command "pip install -q -e '.[tpu,gcs]' && exec python -m agent_jax.train$(printf ' %q' "$@")"
  ;;
logs)
  job
  act kubectl logs --follow --container jax-tpu --selector \
    "jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
  ;;
stop) job && act xpk workload delete "${where[@]}" --workload "$NAME" ;;
delete) act xpk cluster delete "${where[@]}" ;;
*)
  echo "usage: launch/gke_xpk.sh create | run FLAGS... | logs | stop | delete" >&2
  exit 2
  ;;
esac
