# Sourced by run.sh and test.sh: one Python environment, made when there is none, kept up to date.
#
#   setup_environment FILE...   installs the requirements FILEs into the active environment, or
#                               into .venv (made first if need be), when they have changed.

# Threads that wait by spinning slow each other down manifold where processes share few cores; those
# that sleep at once wake up too late. So they spin for some microseconds (utils/stage.py does so, too).
[ -n "${OMP_WAIT_POLICY:-}" ] || export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=1000

_python() {  # the first Python on the PATH that is new enough
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        if command -v "$name" >/dev/null &&
           "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python 3.10 or newer on the PATH" >&2
    return 1
}

setup_environment() {
    local root name stamp python
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
        # Two scripts started at once must not both make the environment.
        if command -v flock >/dev/null; then
            exec 9>"$root/.venv.lock"
            flock 9
        fi
        if ! "$root/.venv/bin/python" -m pip --version >/dev/null 2>&1; then
            python="$(_python)" || return 1
            echo "making the environment .venv with $("$python" --version)"
            "$python" -m venv --clear "$root/.venv" || {
                echo "error: python -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2
                return 1
            }
        fi
        # shellcheck disable=SC1091
        source "$root/.venv/bin/activate"
    fi
    stamp="$(python -c 'import sys; print(sys.prefix)')/.drs-requirements"
    mkdir -p "$stamp"
    for name in "$@"; do
        if ! cmp -s "$root/$name" "$stamp/$name"; then
            echo "installing $name (the first time takes a few minutes)"
            python -m pip install --quiet --disable-pip-version-check -r "$root/$name" || {
                echo "error: installing $name failed (see above)" >&2
                return 1
            }
            cp "$root/$name" "$stamp/$name"
        fi
    done
    if [ -e "$root/.venv.lock" ]; then
        exec 9>&-
    fi
}
