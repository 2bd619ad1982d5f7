#!/usr/bin/env bash
# Run the tests: bash test.sh [pytest options]. Makes the environment if there is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source utils/environment.sh
setup_environment requirements.txt requirements-extra.txt requirements-dev.txt
exec python -m pytest "$@"
