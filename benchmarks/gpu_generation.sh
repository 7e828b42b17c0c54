#!/usr/bin/env bash
# The proofs of generation on a GPU, in parts of at most ten minutes each. Results go to the folder OUT, work to WORK.
# Usage, with hookloop installed (and fme and dacite for era5), ERA5_UK naming the folder of the data:
#   benchmarks/gpu_generation.sh OUT WORK cost
#   benchmarks/gpu_generation.sh OUT WORK analytic [--seconds 240 …]
#   benchmarks/gpu_generation.sh OUT WORK search [--seconds 480 …]
#   benchmarks/gpu_generation.sh OUT WORK era5 [--networks 8 --set SECTION.KEY=VALUE …]
set -euo pipefail
out=${1:?a directory for results} work=${2:?a directory to work in} part=${3:?cost, analytic, search or era5}
shift 3
code=0
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out" "$work"
keep() { # what programs said, in one file: few files may come back
    tar -C "$work" -czf "$out/$part.tgz" --ignore-failed-read --exclude='*.ckpt' --exclude='*.npz' --exclude=data "$part" || true
}
trap keep EXIT
case $part in
cost)
    mkdir -p "$work/cost"
    python3 "$here/generation_cost.py" "$@" | tee "$out/cost.txt" || code=$?
    python3 "$here/scores.py" --device cuda | tee -a "$out/cost.txt"
    ;;
analytic)
    python3 "$here/analytic/run.py" "$work/analytic" "$@" | tee "$out/analytic.txt" || code=$?
    cp "$work/analytic/analytic.json" "$out"
    ;;
search)
    python3 "$here/era5_uk/search.py" "$work/search" "$@" | tee "$out/search.txt"
    cp "$work/search/search.md" "$out"
    ;;
era5)
    python3 "$here/era5_uk/ours.py" "$work/era5" "$@" | tee "$out/era5.txt"
    cp "$work/era5/ours.json" "$out"
    # The peer has the machine to itself for as long, and its start is not counted.
    seconds=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["training_seconds"])' "$out/ours.json")
    python3 "$here/era5_uk/peer.py" "$ERA5_UK" "$work/era5/peer" --seconds "$seconds" --members 16 2>&1 | tee -a "$out/era5.txt"
    cp "$work/era5/peer/peer.json" "$out"
    python3 "$here/era5_uk/score.py" "$work/era5/peer/"*.npz | tee -a "$out/era5.txt"
    ;;
*)
    echo "$part: expected cost, analytic, search or era5" >&2
    exit 2
    ;;
esac
exit "$code"
