#!/usr/bin/env bash
# Run the tests: bash test.sh [pytest options]. Makes the environment if there is none. One process
# a core; -n 0 for one in all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source utils/environment.sh
setup_environment requirements.txt requirements-extra.txt requirements-dev.txt
# pydensecrf, which the CRF is compared with, is compiled. Where that fails, tests are skipped.
if ! python -c "import pydensecrf" 2>/dev/null && command -v c++ >/dev/null; then
    # Not in pip's isolated build: with the Cython it fetches there, Python 3.13 fails.
    { python -m pip install --quiet "cython>=3" setuptools wheel &&
        python -m pip install --quiet --no-build-isolation -r requirements-crf.txt; } \
        >/dev/null 2>&1 || echo "pydensecrf could not be built; tests that need it are skipped" >&2
fi
exec python -m pytest --numprocesses auto --dist worksteal "$@"
