#!/usr/bin/env bash
# Train DeepLab-V2 on the pseudo labels: bash train.sh [CONFIG] [SECTION.KEY=VALUE ...]
# Interrupted, the same command goes on. On N GPUs: GPUS=N bash train.sh [CONFIG] ...
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launcher=(python)
if [ "${GPUS:-1}" -gt 1 ]; then # from the root, so that an error is one line
    launcher=(env PYTHONPATH=.. python -m utils.torchrun --standalone --nproc-per-node "$GPUS")
fi
exec "${launcher[@]}" main.py train -c "$config" "$@"
