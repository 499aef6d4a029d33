#!/bin/bash
# Submits the slices, and the job that publishes them: MODEL=... OUT_DIR=... [OPTIONS=--absorb] submit.sh
set -euo pipefail
: "${MODEL:?the folder of the checkpoint}" "${OUT_DIR:?the folder to write}"
export MODEL OUT_DIR OPTIONS=${OPTIONS:-}
slices=$(sbatch --parsable --export=ALL "$(dirname "$0")/slices.sbatch")
sbatch --dependency="afterok:$slices" --cpus-per-task=2 --mem=2G --export=ALL \
  --wrap='fp8pad convert "$MODEL" "$OUT_DIR" --finish $OPTIONS'
