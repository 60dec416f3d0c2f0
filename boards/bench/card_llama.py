"""llama.cpp on a card, with Q8_0 files of random weights: a peer of card_peers.py.

It is built from llama-cpp-python's sources into target/bench/llama-cuda, which needs nvcc, or taken from a Python that has it already. The
weights are random: speed does not depend on them.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2] / "target/bench"
PACKAGES = ["llama-cpp-python==0.3.36", "gguf", "numpy"]
BATCHES, PROMPT, STEPS = (1, 8), 64, 32


def interpreter(offline):
    """A Python whose llama.cpp uses cards, or a sentence."""
    if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf"):
        return sys.executable, None
    python = ROOT / "llama-cuda/bin/python"
    if not python.exists():
        if offline:
            return None, "llama-cpp-python is not installed, and --offline fetches nothing"
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
        if not nvcc:
            return None, "llama-cpp-python is not installed, and there is no nvcc to build it with"
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True, stdout=sys.stderr)
        environment = {**os.environ, "CMAKE_ARGS": f"-DGGML_CUDA=on -DCMAKE_CUDA_COMPILER={nvcc}"}
        command = [python, "-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "15", "--no-binary", "llama-cpp-python", *PACKAGES]
        if subprocess.run(command, env=environment, stdout=sys.stderr).returncode:
            shutil.rmtree(python.parent.parent)
            return None, "llama-cpp-python does not come from PyPI or does not build with CUDA; the lines of pip above say why"
    return python, None


def write(path, shape):
    """A file of that shape, of random blocks."""
    import gguf
    import numpy as np

    layers, d, heads, kv_heads, ff, vocabulary = shape
    head_dim = d // heads
    file = gguf.GGUFWriter(path, "llama")
    for add, value in [
        (file.add_context_length, 4096), (file.add_embedding_length, d), (file.add_block_count, layers),
        (file.add_feed_forward_length, ff), (file.add_head_count, heads), (file.add_head_count_kv, kv_heads),
        (file.add_layer_norm_rms_eps, 1e-5), (file.add_rope_dimension_count, head_dim), (file.add_vocab_size, vocabulary),
    ]:
        add(value)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [f"t{i}" for i in range(len(tokens), vocabulary)]
    file.add_tokenizer_model("llama")
    file.add_token_list(tokens)
    file.add_token_scores([0.0] * vocabulary)
    file.add_token_types([2, 3, 3] + [6] * 256 + [1] * (vocabulary - 259))
    random = np.random.default_rng(1)

    def matrix(name, n, k):
        blocks = np.empty((n, k // 32, 34), np.uint8)
        # Uniform bytes deviate by 73; weights by 0.02.
        blocks[..., :2] = np.frombuffer(np.float16(0.02 / 73).tobytes(), np.uint8)
        blocks[..., 2:] = random.integers(1, 256, (n, k // 32, 32), np.uint8)
        file.add_tensor(name, blocks.reshape(n, -1), raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    ones = lambda name: file.add_tensor(name, np.ones(d, np.float32))
    matrix("token_embd.weight", vocabulary, d)
    for i in range(layers):
        ones(f"blk.{i}.attn_norm.weight")
        for name, n, k in [("attn_q", d, d), ("attn_k", kv_heads * head_dim, d), ("attn_v", kv_heads * head_dim, d),
                           ("attn_output", d, d), ("ffn_gate", ff, d), ("ffn_up", ff, d), ("ffn_down", d, ff)]:
            matrix(f"blk.{i}.{name}.weight", n, k)
        ones(f"blk.{i}.ffn_norm.weight")
    ones("output_norm.weight")
    matrix("output.weight", vocabulary, d)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def run(path):
    """Rates of one file, every layer on the card; runs in the Python that has llama.cpp."""
    import llama_cpp as L

    L.llama_backend_init()
    if not L.llama_supports_gpu_offload():
        return {"why": "this llama.cpp was built without a card's back-end"}
    options = L.llama_model_default_params()
    options.n_gpu_layers = 999
    model = L.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        return {"why": "llama.cpp does not load its file"}

    def context(tokens, sequences):
        options = L.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = tokens, max(tokens, 576), 576, sequences
        return L.llama_init_from_model(model, options)

    def step(ctx, batch, entries):
        batch.n_tokens = len(entries)
        for k, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[k], batch.pos[k], batch.n_seq_id[k], batch.logits[k] = token, position, 1, wanted
            batch.seq_id[k][0] = sequence
        start = time.perf_counter()
        if L.llama_decode(ctx, batch):
            sys.exit("llama_decode failed")
        L.llama_synchronize(ctx)
        return time.perf_counter() - start

    found, batch = {}, L.llama_batch_init(1024, 0, 1)
    ctx = context(1024, 1)
    times = []
    for _ in range(9):
        L.llama_memory_clear(L.llama_get_memory(ctx), True)
        times.append(step(ctx, batch, [(300 + i, i, 0, i == 575) for i in range(576)]))
    found["prefill_576"] = 576 / statistics.median(times[2:])
    L.llama_free(ctx)
    for n in BATCHES:
        ctx = context(256 * n, n)
        for s in range(n):
            step(ctx, batch, [(300 + i, i, s, i == PROMPT - 1) for i in range(PROMPT)])
        times = [step(ctx, batch, [(300 + k, PROMPT + k, s, True) for s in range(n)]) for k in range(8 + STEPS)]
        found["decode" if n == 1 else f"decode_{n}"] = n / statistics.median(times[8:])
        L.llama_free(ctx)
    return found


def measure(shapes, sizes, quick, offline):
    """Every shape in a process of its own: yields the answer of each, or why there is none."""
    if quick and not importlib.util.find_spec("llama_cpp"):
        yield {"why": "llama-cpp-python is not installed; only its presence was asked for"}
        return
    try:
        python, why = interpreter(offline)
    except (OSError, subprocess.CalledProcessError) as error:
        python, why = None, str(error)
    if why or quick:
        yield {"why": why or "only its presence was asked for"}
        return
    for shape in shapes:
        path = ROOT / f"{shape}-q8_0.gguf"
        command = [python, __file__, str(path), json.dumps(sizes[shape])]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if answer.returncode:
            yield {"why": f"llama.cpp ended with {answer.returncode} on shape {shape}"}
            return
        rates = json.loads(answer.stdout.splitlines()[-1])
        if "why" in rates:
            yield rates
            return
        yield {"models": {shape: rates}}


if __name__ == "__main__":
    file, size = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
    if not file.exists():
        part = file.with_suffix(".part")
        write(part, size)
        part.rename(file)
    print(json.dumps(run(file)))
