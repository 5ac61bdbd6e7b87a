#!/usr/bin/env bash
# Makes the virtual environment given as $1 with every package that the quickstart and the tests need.
# Environment: PYTHON (default python3.11). pip's own settings (PIP_INDEX_URL, ...) are respected.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:?usage: scripts/setup.sh VENV}
python=${PYTHON:-python3.11}
extras=tune,eval,photos-dlib,page,dev

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

check_python() {
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
        fail "expected Python 3.11 as '$python', found no such program" \
            "install it (Debian: apt-get install python3.11 python3.11-venv) or name it: make setup PYTHON=/path/to/python3.11"
    [ "$version" = 3.11 ] ||
        fail "expected Python 3.11, got $version from '$python'; name another: make setup PYTHON=/path/to/python3.11"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "'$python' cannot make virtual environments; run: apt-get install python3.11-venv"
}

# Open3D's wheel links against these shared libraries and does not bring them along.
missing_debian_packages() {
    "$python" - <<'PY'
import ctypes
import sys

NEEDED = {"libusb-1.0.so.0": "libusb-1.0-0", "libGL.so.1": "libgl1", "libEGL.so.1": "libegl1", "libX11.so.6": "libx11-6"}
missing = []
for library, package in NEEDED.items() if sys.platform == "linux" else ():
    try:
        ctypes.CDLL(library)
    except OSError:
        missing.append(package)
print(*missing)
PY
}

install_system_libraries() {
    local packages as_root
    packages=$(missing_debian_packages)
    [ -n "$packages" ] || return 0
    command -v apt-get >/dev/null ||
        fail "these system libraries are missing and there is no apt-get: $packages (Debian's names)"
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        fail "these system libraries are missing, and installing them needs root; run this line, then try again:" \
            "    sudo apt-get update && sudo apt-get install -y --no-install-recommends $packages"
    fi
    echo "setup: installing $packages"
    # shellcheck disable=SC2086  # both are lists of words
    $as_root apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $packages >/dev/null ||
        fail "apt-get failed; run this line by hand, then try again:" \
            "    $as_root apt-get update && $as_root apt-get install -y --no-install-recommends $packages"
}

check_python
install_system_libraries
# an interrupted venv has a python and no pip
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
echo "setup: installing dfmvr[$extras] into $venv (a few minutes)"
install=("$venv/bin/python" -m pip install -qq --disable-pip-version-check --constraint constraints.txt)
"${install[@]}" --editable ".[$extras]"
# alone: it asks for opencv-python, which overwrites opencv-python-headless; all else it needs is there by now
"${install[@]}" --no-deps face-alignment
echo "setup: done"
