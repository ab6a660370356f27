#!/usr/bin/env bash
# One machine with NVIDIA GPUs: one process uses all of them.
#
#   launch/gpu_node.sh install                                             # .venv, with JAX for CUDA
#   launch/gpu_node.sh run --config configs/gpu.py:node --workdir runs/gpu ...
#
# `run` restarts after a failure, on the same workdir. To detach it from the terminal and follow the log:
#
#   nohup launch/gpu_node.sh run ... >run.log 2>&1 &   tail -F run.log
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${VENV:-$checkout/.venv}"
case "${1:-}" in
install)
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip install -e "${checkout}[cuda]"
  "$venv/bin/python" -c 'import jax; print(jax.devices("gpu"))' # an error where the driver is missing
  ;;
run)
  shift
  # JAX reserves 75% of the memory at the start; no other process uses these GPUs.
  export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
  exec "$checkout/launch/restart.sh" "$venv/bin/python" -m agent_jax.train --config.mesh.platform=gpu --processes=1 "$@"
  ;;
*)
  echo "usage: launch/gpu_node.sh install | run --config FILE --workdir DIR [...]" >&2
  exit 2
  ;;
esac
