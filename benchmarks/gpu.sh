#!/usr/bin/env bash
# benchmarks/gpu.py on a machine without network, with what it needs carried there as wheels.
#   benchmarks/gpu.sh pack WHEELS [PYTHON]      here, with network: fetch and build wheels for Linux and PYTHON (3.12)
#   benchmarks/gpu.sh run WHEELS OUT [options]  there, in a copy of the repository: install them aside and measure
# There are expected: Python with torch, numpy, xarray, pandas, h5py, matplotlib, einops and what these need.
set -euo pipefail
part=${1:?pack or run} wheels=${2:?a directory of wheels}
here=$(cd "$(dirname "$0")" && pwd)
case $part in
pack)
    version=${3:-3.12}
    platforms=()
    for glibc in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_12 manylinux2010 manylinux_2_5 manylinux1; do
        platforms+=(--platform "${glibc}_x86_64")
    done
    mkdir -p "$wheels"
    python -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
        "${platforms[@]}" --dest "$wheels" --constraint "$here/../constraints.txt" \
        attrs cattrs cftime click donfig google-crc32c h5netcdf markdown-it-py mdurl numcodecs packaging pluggy \
        pygments pyyaml rich structlog typing_extensions zarr fme==2026.10.0 dacite==1.9.2
    python -m pip wheel --quiet --no-deps --wheel-dir "$wheels" "$here/.."
    du -sh "$wheels"
    ;;
run)
    out=${3:?a directory for results}
    shift 3
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
    mkdir -p "$out"
    # The sources of this folder, not those of the wheel, which only names the plugins.
    PYTHONPATH=$here/..:$site PYTHONUNBUFFERED=1 python3 "$here/gpu.py" --out "$out/gpu.jsonl" "$@"
    ;;
*)
    echo "$part: expected pack or run" >&2
    exit 2
    ;;
esac
