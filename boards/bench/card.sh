#!/usr/bin/env bash
# Builds, checks and measures the CUDA engine on a machine that has a card: bash boards/bench/card.sh [OUT]
#
# Needs Rust, Python with venv, and NVIDIA's driver; no CUDA toolkit. In OUT (default target/card): a table of what every kernel uses, the
# goldens of every family on the card, a JSON object of the shipped model and of shapes S, M and L beside the card's limits and the targets, and of the peers that this
# machine has (PyTorch, if it can be imported). Exits with 1 if anything that is computed differs.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:-target/card}
mkdir -p "$out"
failed=0
say() { printf '\n==== %s\n' "$*"; }

say 'the card'
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.mem,power.limit --format=csv 2>/dev/null | tee "$out/card.csv" || echo 'nvidia-smi is not here'

say 'kernels for every architecture'
cargo xtask cubin | tee "$out/cubin.txt" || exit 1
kernels=$PWD/target/cubin

say 'build'
cargo build --release -p saccaded -p saccade-convert --features saccaded/cuda,saccade-convert/cuda || exit 1
convert=target/release/saccade-convert daemon=target/release/saccaded

say 'goldens on the card'
fixtures=convert/tests/fixtures
for model in hf/janus hf/chameleon hf/emu3; do
    for precision in f32 int8; do
        "$convert" golden "$fixtures/$model" --golden "$fixtures/$model/golden.safetensors" --precision $precision \
            --device cuda --kernels "$kernels" --json >"$out/golden-$(basename $model)-$precision.json" && echo "pass $model $precision" ||
            { echo "FAIL $model $precision"; [ $precision = int8 ] || failed=1; }
    done
done
for model in llama/tiny kin/llama kin/mistral kin/qwen2 kin/qwen3; do
    golden=$fixtures/$model.golden.safetensors
    [ -f "$golden" ] || golden=$fixtures/llama/golden.safetensors
    "$convert" golden "$fixtures/$model" --golden "$golden" --device cuda --kernels "$kernels" --json \
        >"$out/golden-$(basename $model).json" && echo "pass $model" || { echo "FAIL $model"; failed=1; }
done

say 'engine beside the limits'
mkdir -p target/bench
for shape in nano S M L; do
    bundle=target/bench/$shape
    [ $shape = nano ] && bundle=examples/models/nano
    [ -f $bundle/saccade.json ] || "$convert" random $shape $bundle || { failed=1; continue; }
    "$daemon" bench --engine --device cuda --kernels "$kernels" --model $bundle >"$out/bench-$shape.json" || { failed=1; continue; }
    echo "$shape: $(cat "$out/bench-$shape.json")"
done

say 'peers'
python3 boards/bench/card_peers.py >"$out/peers.json" && cat "$out/peers.json" || echo 'no peer could be measured'

say "everything is in $out"
exit $failed
