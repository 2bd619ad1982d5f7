#!/usr/bin/env bash
# Score on val, then with CRF: bash eval.sh [CONFIG] [SECTION.KEY=VALUE ...]
# The network runs once; the CRF starts from its stored logits (some 200 MB for VOC's val).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../utils/environment.sh
setup_environment requirements.txt
config=configs/voc12.yaml
if [ $# -gt 0 ] && [ -f "$1" ]; then config="$1"; shift; fi
python main.py test --save-logits -c "$config" "$@"
python main.py crf --stored-logits -c "$config" "$@"
