# What train.sh and eval.sh begin with; sourced. $config is the first argument, if that is a file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../utils/environment.sh
setup_environment requirements.txt
config=configs/voc12.yaml
if [ $# -gt 0 ] && [ -f "$1" ]; then config="$1"; shift; fi
