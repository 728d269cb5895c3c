# Sourced by every finding: a temporary folder that goes away, and an environment with pinned packages in it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# install PACKAGE==VERSION...: makes the environment, quietly.
install() {
    "${PYTHON:-python3}" -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@" 2>"$folder/pip.log" || {
        cat "$folder/pip.log" >&2
        exit 2
    }
}

# run: the program on standard input, in an empty folder.
run() {
    (cd "$folder" && "$folder/venv/bin/python" -)
}
