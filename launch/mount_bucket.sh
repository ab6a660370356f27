#!/usr/bin/env bash
# Mount a Google Cloud Storage bucket as a directory with gcsfuse. Data sets need it: array_record reads files only.
#
#   launch/mount_bucket.sh BUCKET /mnt/data           then --config.data.domains.NAME.path=/mnt/data/...
#
# Training reads single records in random order, so gcsfuse caches what was read in CACHE (up to 50,000 MiB in /tmp).
set -euo pipefail

if (($# != 2)); then
  echo "usage: launch/mount_bucket.sh BUCKET DIRECTORY" >&2
  exit 2
fi
bucket="${1#gs://}" directory="$2"
if mountpoint -q "$directory"; then
  echo "$directory is mounted already"
  exit 0
fi
if ! command -v gcsfuse >/dev/null; then
  echo "gcsfuse is not installed on $(hostname): https://cloud.google.com/storage/docs/cloud-storage-fuse/install" >&2
  exit 2
fi
sudo mkdir -p "$directory"
sudo chown "$(id -u):$(id -g)" "$directory"
gcsfuse --implicit-dirs --cache-dir "${CACHE:-/tmp/gcsfuse}" --file-cache-max-size-mb "${CACHE_MB:-50000}" \
  "$bucket" "$directory"
