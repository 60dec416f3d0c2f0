#!/usr/bin/env bash
# Builds, checks and measures the CUDA engine on a machine that has a card: bash boards/bench/card.sh [--quick] [OUT]
#
# Needs Rust, Python with venv, and NVIDIA's driver; no CUDA toolkit. In OUT (default target/card): a table of what every kernel uses, the
# goldens of every family on the card, the frames of the clip on the CPU and on the card, a JSON object of the shipped model, of shapes S, M
# and L and of SmolLM2 (whose file comes from PyPI), of the peers that this machine has, and a table of every figure with its target, its
# verdict and the peers beside it. Exits with 1 if anything that is computed differs.
#
# --quick is a check of this script, in minutes on the emulated card (its libcuda.so in LD_LIBRARY_PATH): one golden, one model, a handful of
# tokens. Its figures mean nothing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
quick=
[ "${1:-}" = --quick ] && { quick=--quick; shift; }
out=${1:-target/card}
mkdir -p "$out"
rm -f "$out"/bench-*.json "$out"/golden-*.json "$out/peers.json"
failed=0
say() { printf '\n==== %s\n' "$*"; }

say 'the card'
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.mem,power.limit --format=csv 2>/dev/null | tee "$out/card.csv" || echo 'nvidia-smi is not here'

say 'kernels for every architecture'
cargo xtask cubin | tee "$out/cubin.txt" || exit 1
kernels=$PWD/target/cubin

say 'build'
features=saccaded/cuda,saccade-convert/cuda,saccade-examples/cuda
cargo build --release --bins -p saccaded -p saccade-convert -p saccade-examples --features $features || exit 1
convert=target/release/saccade-convert daemon=target/release/saccaded camera=target/release/camera

say 'goldens on the card'
fixtures=convert/tests/fixtures
# NAME MODEL GOLDEN PRECISION: INT8 may differ from what float32 stored, which its file then tells; that is no failure.
golden() {
    "$convert" golden "$fixtures/$2" --golden "$fixtures/$3" --precision "$4" --device cuda --kernels "$kernels" --json \
        >"$out/golden-$1-$4.json" && echo "pass $1 $4" || { echo "FAIL $1 $4"; [ "$4" = int8 ] || failed=1; }
}
golden tiny llama/tiny llama/golden.safetensors f32
if [ -z "$quick" ]; then
    for model in janus chameleon emu3; do
        for precision in f32 int8; do golden $model hf/$model hf/$model/golden.safetensors $precision; done
    done
    for model in llama mistral qwen2 qwen3; do golden $model kin/$model kin/$model.golden.safetensors f32; done
fi

say 'frames of the clip on both: codes, answers and actions, and where their time goes'
frames=300
[ -n "$quick" ] && frames=2
for device in cpu cuda; do
    "$camera" --headless --frames $frames --device $device --kernels "$kernels" --jsonl "$out/frames-$device.jsonl" examples/clips/*.avi \
        2>"$out/frames-$device.txt" || { cat "$out/frames-$device.txt"; failed=1; }
    grep -v INFO "$out/frames-$device.txt"
done
python3 - "$out" <<'END' || failed=1
import json, sys
both = [[json.loads(line) for line in open(f"{sys.argv[1]}/frames-{device}.jsonl")] for device in ("cpu", "cuda")]
parts = [[(frame["seq"], frame["codes"], frame["text"], frame["action"]) for frame in frames] for frames in both]
same = sum(a == b for a, b in zip(*parts))
print(f"{same} of {len(parts[0])} frames are alike")
sys.exit(same != len(parts[0]) or len(parts[0]) != len(parts[1]) or same == 0)
END

say 'engine beside the limits'
mkdir -p target/bench
measure() { # NAME BUNDLE
    "$daemon" bench --engine --device cuda --kernels "$kernels" $quick --model "$2" >"$out/bench-$1.json" || { failed=1; rm -f "$out/bench-$1.json"; }
}
measure nano examples/models/nano
if [ -z "$quick" ]; then
    for shape in S M L; do
        bundle=target/bench/$shape
        [ -f $bundle/saccade.json ] || "$convert" random $shape $bundle || { failed=1; continue; }
        measure $shape $bundle
    done
    smollm2=target/bench/smollm2
    if gguf=$(python3 boards/bench/smollm2.py --fetch); then
        [ -f $smollm2/int8/saccade.json ] || "$convert" convert "$gguf" $smollm2/int8 || failed=1
        measure smollm2 $smollm2/int8
    else
        echo "SmolLM2 is not measured: its file could not be had"
    fi
fi

say 'peers'
python3 boards/bench/card_peers.py $quick >"$out/peers.json" || { echo 'the peers could not be measured'; rm -f "$out/peers.json"; }

say 'figures, targets, peers'
python3 boards/bench/card_table.py "$out" | tee "$out/table.txt" || failed=1

say "everything is in $out"
exit $failed
