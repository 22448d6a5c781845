# Sourced by other scripts: `use_environment FILE...` makes .venv with the packages of the requirement files and puts it
# first on PATH. Nothing is done when it has been done for the same files before.

use_environment() {
    local python=${PYTHON:-python3} stamp
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
        echo "error: $python: is missing or older than 3.10; install Python 3.10 or later, or set PYTHON" >&2
        return 2
    }
    stamp=.venv/installed-$(cat "$@" | cksum | tr -cd 0-9)
    if [ ! -e "$stamp" ]; then
        "$python" -m venv .venv || {
            echo "error: $python -m venv: failed; install your system's python3-venv package" >&2
            return 2
        }
        local requirements=() file
        for file in "$@"; do requirements+=(-r "$file"); done
        # uv installs the same packages faster; pip does it where uv cannot. Bytecode is compiled now, once: where
        # PYTHONDONTWRITEBYTECODE is set, every start of Python would compile torch anew.
        { .venv/bin/python -m pip install --quiet uv && .venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python "${requirements[@]}"; } ||
            .venv/bin/python -m pip install --quiet "${requirements[@]}" || {
            echo "error: pip install ${requirements[*]}: failed; see above" >&2
            return 2
        }
        touch "$stamp"
    fi
    PATH=$PWD/.venv/bin:$PATH
}
