#!/usr/bin/env bash
# On a GPU: the tests that need one, and a run stopped by its time limit and resumed against one never stopped.
# Usage, with hookloop installed: benchmarks/gpu_check.sh DIR
set -euo pipefail
dir=${1:?a directory to work in}
here=$(dirname "$0")
tests=$here/../tests
python -m pytest -q "$tests/plugins/downscaling/"test_{dataset,stores,model}.py "$tests/data/"test_{readers,fields,copies}.py "$tests/test_optimization.py"
python -m hookloop init downscaling "$dir/data" --size 64 --times 512
run() {
    python -m hookloop run --set run.max_epochs=20 --set run.validate_every='10 epochs' --set ema.decay=0.99 \
        --set progress.every_n_batches=16 --set checkpoint.every_n_batches=7 \
        --set downscaling.model.backbone.channels=64 --set downscaling.patch.coarse='[8, 8]' \
        --set generation.windows=16 "$@" "$dir/data/cfg.yaml"
}
run --dir "$dir/whole" 2>"$dir/whole.txt"
code=0
run --dir "$dir/parts" --set run.time_limit=6s 2>"$dir/parts.txt" || code=$?
echo "stopped by its time limit: exit code $code, $(grep -c checkpoint.saved "$dir/parts.txt") checkpoints"
run --dir "$dir/parts" 2>>"$dir/parts.txt"
run --dir "$dir/ram" --set downscaling.train.cache=ram 2>"$dir/ram.txt"
run --dir "$dir/none" --set downscaling.train.cache=none --set downscaling.train.workers=4 2>"$dir/none.txt"
python - "$dir" <<'PY'
import json, sys, torch
from pathlib import Path
where = Path(sys.argv[1])
whole, *others = (torch.load(where / name / "checkpoints/latest.ckpt", weights_only=True) for name in ("whole", "parts", "ram", "none"))
for name, other in zip(("resumed", "cached in RAM", "streamed by four readers"), others):
    for part in ("progress", "model", "optimization", "best"):
        torch.testing.assert_close(other[part], whole[part], rtol=0, atol=0)
    torch.testing.assert_close(other["plugins"]["ema"], whole["plugins"]["ema"], rtol=0, atol=0)
    print(f"{name}: weights, averages, moments and best values are bit-equal to the run never stopped")
for name in ("whole", "ram", "none"):
    lines = [json.loads(line) for line in (where / name / "metrics.jsonl").read_text().splitlines()]
    speeds = sorted(line["batch/samples_per_second"] for line in lines if "batch/samples_per_second" in line)
    scores = [line for line in lines if "inference/error" in line][-1]
    print(f"{name}: {speeds[len(speeds) // 2]:.0f} samples/s (median), CRPS relative to bicubic {scores['inference/error']:.4f}")
print(torch.cuda.get_device_name(), "torch", torch.__version__)
PY
