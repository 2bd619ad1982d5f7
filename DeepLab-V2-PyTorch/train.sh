#!/usr/bin/env bash
# Train DeepLab-V2 on the pseudo labels: bash train.sh [CONFIG] [SECTION.KEY=VALUE ...]
# Interrupted, the same command goes on. On N GPUs: GPUS=N bash train.sh [CONFIG] ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../utils/environment.sh
setup_environment requirements.txt
config=configs/voc12.yaml
if [ $# -gt 0 ] && [ -f "$1" ]; then config="$1"; shift; fi
launcher=(python)
if [ "${GPUS:-1}" -gt 1 ]; then # from the root, so that an error is one line
    launcher=(env PYTHONPATH=.. python -m utils.torchrun --standalone --nproc-per-node "$GPUS")
fi
exec "${launcher[@]}" main.py train -c "$config" "$@"
