#!/usr/bin/env bash
# What the stages reach on this machine's GPU, or without one: bash benchmarks/gpu.sh [--quick]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source utils/environment.sh
setup_environment requirements.txt
exec python -m benchmarks.gpu "$@"
