#!/usr/bin/env bash
# Converts a checkpoint and checks that nothing changed: every byte, and the outputs of the served model.
#
#   golden.sh MODEL OUT_DIR [GOLDEN_FILE]
#
# Can be run again and again: OUT_DIR is replaced (convert --overwrite), and a GOLDEN_FILE that exists is used, so that CI
# can keep it and the original is not started again.
# Environment: REPORTS (folder for verify.json and golden.xml, default ./reports), CONVERT_OPTIONS (such as --absorb),
# RECORD_OPTIONS (such as --prompts FILE), CHECK_OPTIONS (such as --strict). Words are split at blanks.
set -euo pipefail

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
  echo "usage: $0 MODEL OUT_DIR [GOLDEN_FILE]" >&2
  exit 2
fi
model=$1
out_dir=$2
golden=${3:-golden.json}
reports=${REPORTS:-reports}
read -ra convert_options <<< "${CONVERT_OPTIONS:-}"
read -ra record_options <<< "${RECORD_OPTIONS:-}"
read -ra check_options <<< "${CHECK_OPTIONS:-}"
mkdir -p "$reports"

fp8pad convert "$model" "$out_dir" --overwrite "${convert_options[@]}"
# Mismatches, if any, are shown; the status is that of verify.
fp8pad verify "$model" "$out_dir" --json > "$reports/verify.json" || { cat "$reports/verify.json"; exit 1; }
if [ ! -f "$golden" ]; then
  fp8pad golden record "$model" -o "$golden" "${record_options[@]}"
fi
fp8pad golden check "$out_dir" "$golden" --junit "$reports/golden.xml" "${check_options[@]}"
