# Sourced by the commands of this folder: makes the virtual environment .venv of this checkout, keeps it up to date.
# Needs bash and Python 3.11 or newer; everything else is installed by pip.

COMPILER=ziglang==0.17.1

fail() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit "${2:-1}"
}

# Refuse an option that a Python program does not have, before anything is installed for it. What options are given it checks.
known_options() { # program, its arguments
    local program=$1 argument name
    for argument in "${@:2}"; do
        name=${argument%%=*}
        [[ $name == -[-a-zA-Z]* && $name != -- && $name != -h ]] || continue
        [[ --help == "$name"* ]] || grep -qF -- "\"$name" "$program" || fail "unrecognized arguments: $argument" 2
    done
}

# Print the first Python that is new enough. A name on the path proves nothing (version managers leave stubs).
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# Print cuda13, cuda12 or nothing: the extra that fits the NVIDIA driver and all of its GPUs.
# CUDA 13 needs driver 580 and compute capability 7.5; CUDA 12 needs driver 525 and compute capability 5.0.
cuda_extra() {
    local rows driver capability extra=cuda13
    rows=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader,nounits 2>/dev/null) || return 0
    while IFS=', ' read -r driver capability; do
        driver=${driver%%.*}
        capability=${capability/./}
        [[ $driver =~ ^[0-9]+$ && $capability =~ ^[0-9]+$ ]] || return 0
        ((driver >= 525 && capability >= 50)) || return 0
        ((driver >= 580 && capability >= 75)) || extra=cuda12
    done <<<"$rows"
    echo "$extra"
}

pip_install() { # environment, arguments of pip install
    local environment=$1
    shift
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$@" || fail \
        "pip could not install what is needed (its message is above). This step downloads packages from PyPI: check the
  network, or name a mirror in PIP_INDEX_URL, and run the command again."
}

make_environment() { # python, folder
    "$1" -m venv "$2" || fail \
        "'$1 -m venv' failed. On Debian and Ubuntu the module is a package of its own: apt install python3-venv"
}

# Print a hash of all that an environment depends on.
fingerprint() { # extra, python, its version, extra for CUDA
    printf '%s\n' "$PWD" "$1" "$3" "$4" | cat - pyproject.toml setup.cfg scripts/_environment.sh |
        "$2" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

# Make .venv hold this checkout (editable), its extra $1 (demo or test) and the CuPy that fits. Nothing is done
# when a run before this one did it with the same files, Python and driver.
ensure_environment() {
    local extra=$1 python version cuda held
    python=$(find_python) || fail "needs Python 3.11 or newer; name it in PYTHON if it is not on the path" 2
    version=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)')
    cuda=$(cuda_extra)
    for held in "$extra" test; do # the extra test holds all of demo
        [[ -f .venv/installed-$held ]] || continue
        [[ $(<".venv/installed-$held") == "$(fingerprint "$held" "$python" "$version" "$cuda")" ]] && return
    done
    [[ -e .venv && ! -f .venv/made-by-scripts ]] && fail \
        ".venv was not made by this command, which would replace it. Move it away, or remove it: rm -r .venv"
    extra=$extra${cuda:+,$cuda}
    echo "Installing into .venv with $("$python" --version): cusink[$extra] (once, a minute or two) ..."
    # demo and test share one environment: the second adds to what the first left, if that was finished by this Python.
    if [[ ! -f .venv/made-by-scripts || $(<.venv/made-by-scripts) != "$version" ]] ||
        ! compgen -G '.venv/installed-*' >/dev/null; then
        rm -rf .venv
        mkdir .venv
        echo "$version" >.venv/made-by-scripts
        make_environment "$python" .venv
    fi
    pip_install .venv --editable ".[$extra]"
    fingerprint "$1" "$python" "$version" "$cuda" >".venv/installed-$1"
}

# The tests that run CUDA kernels on the CPU build them with g++. Where there is none, bring clang as a wheel. The tests keep
# what it builds of its own library in this checkout: no home is needed.
ensure_compiler() {
    command -v g++ >/dev/null && return
    .venv/bin/python -m ziglang version >/dev/null 2>&1 && return # an install that was cut short can be imported
    echo "Installing a C++ compiler into .venv, as g++ was not found (once, 100 MB) ..."
    pip_install .venv "$COMPILER"
}

# What the tests look into and nothing imports, as lines "folder requirement ...": CuPy for CUDA 12 in its oldest release
# that is supported and for CUDA 13 in its newest, which cannot be installed side by side, each with a compiler, and the
# disassembler.
wheels_wanted() {
    cat <<'END'
cuda12 cupy-cuda12x==13.6.0;python_version<"3.14" cupy-cuda12x==14.2.0;python_version>="3.14"
cuda12 fastrlock>=0.8.3 cuda-pathfinder>=1.3 nvidia-cuda-nvrtc-cu12==12.9.86
cuda13 cupy-cuda13x==14.2.0 cuda-pathfinder>=1.3 nvidia-cuda-nvrtc==13.5.37 nvidia-cuda-nvdisasm==13.5.37
END
}

# Unpack them into .cache/wheels, without touching .venv. Nothing is done when a run before this one did it.
ensure_wheels() {
    local wanted version folder
    wanted=$(wheels_wanted)
    version=$(.venv/bin/python -c 'import sys; print(sys.version)')
    [[ -f .cache/wheels/unpacked && $(<.cache/wheels/unpacked) == "$wanted $version" ]] && return
    echo "Unpacking CuPy and CUDA's compilers into .cache/wheels, for the tests (once, half a minute) ..."
    rm -rf .cache/wheels
    mkdir -p .cache/wheels
    for folder in cuda12 cuda13; do
        # shellcheck disable=SC2046 # one requirement a word
        pip_install .venv --no-deps --target ".cache/wheels/$folder" $(sed -n "s/^$folder //p" <<<"$wanted")
    done
    echo "$wanted $version" >.cache/wheels/unpacked
}
