#!/usr/bin/env bash
# Builds, checks and measures the CUDA engine on a machine that has a card. There, with Rust and a network:
#
#     bash boards/bench/card.sh [--quick] [--offline] [--out DIR] [--results FILE] [SECTION...]
#
# On a machine without Rust or a network, with the programs and kernels of a package that another machine of its kind makes:
#
#     cargo xtask package
#     bash boards/bench/card.sh --offline --built target/package/saccade-0.1.0-x86_64-unknown-linux-gnu.tar.gz [...]
#
# That one file (17 MB, or the folder that is in it) and what git tracks is all that has to be there, beside NVIDIA's driver and Python; no
# CUDA toolkit. `--offline` fetches nothing: SmolLM2 and llama.cpp are left out, with a sentence, unless they are there already.
#
# A section is
#   goldens        every family on the card beside its stored outputs
#   frames         the frames of the clip on the CPU and on the card, and where their time goes
#   engine[:NAME]  the engine beside the card's limits, its logits beside the CPU's: nano, S, M, L, smollm2
#   peers[:NAME]   PyTorch and llama.cpp on the same card: S, M, L
#   table          every figure with its target, its verdict and the peers beside it
# and all of them where none is named. Each leaves its part in OUT (default target/card) until it is run again, so where commands are cut after
# a while, a few sections at a time give the same; `--results` packs OUT into one file after each. Reckoned for a data-centre card with 16
# cores beside it, in seconds: goldens and frames 60, engine 200 (half of it L, whose weights are drawn first), peers:S 100, peers:M 150,
# peers:L 250 (PyTorch compiles its models; llama.cpp, where it has to be built, takes 1,000 more the first time), table 1.
# Exits with 1 if anything that is computed differs.
#
# --quick is a check of this script, in minutes on the emulated card (its libcuda.so in LD_LIBRARY_PATH): one golden, one model, a handful of
# tokens. Its figures mean nothing.
set -uo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
absolute() { case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }
die() { echo "error: $*" >&2; exit 2; }
quick= offline= built= results= out=target/card
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=--quick ;;
        --offline) offline=--offline ;;
        --out | --results | --built)
            [ $# -gt 1 ] || die "$1 needs a path behind it"
            printf -v "${1#--}" %s "$(absolute "$2")"
            shift ;;
        -*) die "there is no option $1; the first lines of boards/bench/card.sh list them" ;;
        *) break ;;
    esac
    shift
done
[ $# -gt 0 ] || set -- goldens frames engine peers table
for section; do
    case $section in
        goldens | frames | engine | engine:nano | engine:[SML] | engine:smollm2 | peers | peers:[SML] | table) ;;
        *) die "there is no section $section; the first lines of boards/bench/card.sh list them" ;;
    esac
done
case $results in "$(absolute "$out")"/*) die "--results cannot lie in what it packs, $out" ;; esac
mkdir -p "$out" ${results:+"$(dirname "$results")"}
failed=0
say() { printf '\n==== %s\n' "$*"; }

say 'the card'
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.mem,power.limit --format=csv 2>/dev/null | tee "$out/card.csv" || echo 'nvidia-smi is not here'

if [ -f "$built" ]; then
    say "unpack $built"
    rm -rf target/built && mkdir -p target/built && tar -xzf "$built" -C target/built --strip-components=1 || exit 1
    built=target/built
fi
if [ -n "$built" ]; then
    programs=$built/bin kernels=$built/bin/cuda
    [ -x "$programs/saccaded" ] && [ -d "$kernels" ] || die "$built is not what \`cargo xtask package\` makes"
else
    command -v cargo >/dev/null || die 'there is no cargo here; --built takes what `cargo xtask package` makes elsewhere'
    programs=target/release kernels=target/cubin
    say 'kernels for every architecture'
    cargo xtask cubin | tee "$out/cubin.txt" || exit 1
    say 'build'
    features=saccaded/cuda,saccade-convert/cuda,saccade-examples/cuda
    cargo build --release --bins -p saccaded -p saccade-convert -p saccade-examples --features $features || exit 1
fi
convert=$programs/saccade-convert

# NAME MODEL GOLDEN PRECISION: INT8 may differ from what float32 stored, which its file then tells; that is no failure, but no file is.
golden() {
    "$convert" golden "$fixtures/$2" --golden "$fixtures/$3" --precision "$4" --device cuda --kernels "$kernels" --json \
        >"$out/golden-$1-$4.json" && echo "pass $1 $4" || { echo "FAIL $1 $4"; [ "$4" = int8 ] && [ -s "$out/golden-$1-$4.json" ] || failed=1; }
}
goldens() {
    say 'goldens on the card'
    rm -f "$out"/golden-*.json
    fixtures=convert/tests/fixtures
    golden tiny llama/tiny llama/golden.safetensors f32
    [ -z "$quick" ] || return
    for model in janus chameleon emu3; do
        for precision in f32 int8; do golden $model hf/$model hf/$model/golden.safetensors $precision; done
    done
    for model in llama mistral qwen2 qwen3; do golden $model kin/$model kin/$model.golden.safetensors f32; done
}

frames() {
    say 'frames of the clip on both: codes, answers and actions, and where their time goes'
    local n=300
    [ -n "$quick" ] && n=2
    for device in cpu cuda; do
        "$programs/camera" --headless --frames $n --device $device --kernels "$kernels" --jsonl "$out/frames-$device.jsonl" \
            examples/clips/*.avi 2>"$out/frames-$device.txt" || { cat "$out/frames-$device.txt"; failed=1; }
        grep -v INFO "$out/frames-$device.txt"
    done
    python3 - "$out" <<'PYTHON' || failed=1
import json, sys
both = [[json.loads(line) for line in open(f"{sys.argv[1]}/frames-{device}.jsonl")] for device in ("cpu", "cuda")]
parts = [[(frame["seq"], frame["codes"], frame["text"], frame["action"]) for frame in frames] for frames in both]
same = sum(a == b for a, b in zip(*parts))
print(f"{same} of {len(parts[0])} frames are alike")
sys.exit(same != len(parts[0]) or len(parts[0]) != len(parts[1]) or same == 0)
PYTHON
}

# NAME BUNDLE
measure() {
    "$programs/saccaded" bench --engine --device cuda --kernels "$kernels" $quick --model "$2" >"$out/$1.part" \
        && mv "$out/$1.part" "$out/bench-$1.json" || { failed=1; rm -f "$out/$1.part"; }
}
engine() { # [NAME]
    if [ -z "${1:-}" ]; then
        rm -f "$out"/bench-*.json
        set -- nano
        [ -n "$quick" ] || set -- nano S M L smollm2
    fi
    local name bundle gguf
    mkdir -p target/bench
    for name; do
        say "engine beside the limits: $name"
        rm -f "$out/bench-$name.json"
        bundle=target/bench/$name
        case $name in
            nano) bundle=examples/models/nano ;;
            smollm2)
                bundle=$bundle/int8
                gguf=$(python3 boards/bench/smollm2.py --fetch $offline) || { echo 'SmolLM2 is not measured'; continue; }
                [ -f $bundle/saccade.json ] || "$convert" convert "$gguf" $bundle || { failed=1; continue; } ;;
            *) [ -f $bundle/saccade.json ] || "$convert" random "$name" $bundle || { failed=1; continue; } ;;
        esac
        measure "$name" $bundle
    done
}

peers() { # [NAME]
    say "peers${1:+: $1}"
    [ -n "${1:-}" ] || rm -f "$out/peers.json"
    python3 boards/bench/card_peers.py $quick $offline ${1:+--shapes "$1"} --out "$out/peers.json" || echo 'the peers could not be measured'
}

table() {
    say 'figures, targets, peers'
    python3 boards/bench/card_table.py "$out" | tee "$out/table.txt" || failed=1
}

for section; do
    name=${section#*:}
    [ "$name" = "$section" ] && name=
    "${section%%:*}" $name
    [ -z "$results" ] || tar -czf "$results" -C "$out" . || failed=1
done

say "everything is in $out${results:+, and in $results}"
exit $failed
