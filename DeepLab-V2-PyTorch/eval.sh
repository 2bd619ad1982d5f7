#!/usr/bin/env bash
# Score on val, then with CRF: bash eval.sh [CONFIG] [SECTION.KEY=VALUE ...]
# The network runs once; the CRF starts from its stored logits (some 200 MB for VOC's val).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
python main.py test --save-logits -c "$config" "$@"
python main.py crf --stored-logits -c "$config" "$@"
