"""Peers on the same card, for the shapes that engines are compared at: PyTorch (bf16, and INT8 weights where they compile) and llama.cpp.

    python3 boards/bench/card_peers.py --out FILE [--shapes S M L] [--quick] [--offline]

FILE gets one JSON object, a member a peer: tokens/s, medians, of a prefill of 576 tokens, of decoding behind 64, and of 8 sequences decoded
together; or `why` a peer could not be measured. It is written after each model, into what stood there, so that a run that is cut keeps what
it has. `--quick` measures nothing and says what is there; `--offline` installs nothing.
"""

import argparse
import json
import pathlib
import statistics
import time

import card_llama

SHAPES = {"S": (12, 512, 8, 8, 1536, 16384), "M": (24, 1024, 16, 4, 2816, 32768), "L": (24, 2048, 16, 16, 5632, 102400)}


def model(torch, layers, d, heads, kv_heads, ff, vocabulary, room):
    functional = torch.nn.functional
    head_dim = d // heads

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            linear = lambda k, n: torch.nn.Linear(k, n, bias=False)
            self.qkv, self.o = linear(d, (heads + 2 * kv_heads) * head_dim), linear(d, d)
            self.gate_up, self.down = linear(d, 2 * ff), linear(ff, d)
            self.norm1, self.norm2 = torch.nn.RMSNorm(d), torch.nn.RMSNorm(d)
            self.register_buffer("keys", torch.zeros(1, kv_heads, room, head_dim))
            self.register_buffer("values", torch.zeros(1, kv_heads, room, head_dim))

        def forward(self, x, at, mask):
            q, k, v = self.qkv(self.norm1(x)).split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], -1)
            shape = lambda t, n: t.view(1, -1, n, head_dim).transpose(1, 2)
            self.keys.index_copy_(2, at, shape(k, kv_heads))
            self.values.index_copy_(2, at, shape(v, kv_heads))
            y = functional.scaled_dot_product_attention(shape(q, heads), self.keys, self.values, attn_mask=mask, enable_gqa=True)
            x = x + self.o(y.transpose(1, 2).reshape(1, -1, d))
            gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
            return x + self.down(functional.silu(gate) * up)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.blocks = torch.nn.Embedding(vocabulary, d), torch.nn.ModuleList(Block() for _ in range(layers))
            self.norm, self.head = torch.nn.RMSNorm(d), torch.nn.Linear(d, vocabulary, bias=False)
            self.register_buffer("places", torch.arange(room))

        def forward(self, ids, at):
            x = self.embed(ids)
            mask = self.places[None, None, None, :] <= at[None, None, :, None]
            for block in self.blocks:
                x = block(x, at, mask)
            return self.head(self.norm(x[:, -1:]))

    # Made on the card: drawing the weights of shape L on one core takes longer than measuring it.
    with torch.device("cuda"):
        return Model().to(torch.bfloat16).eval()


def median(torch, f, n):
    times = []
    for _ in range(n):
        torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def to_int8(torch, net):
    """Linear layers with INT8 weights and a scale a row, unpacked in the product: what a compiler can fuse into it."""

    class Int8(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            scale = linear.weight.abs().amax(1, keepdim=True) / 127
            self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))
            self.register_buffer("scale", scale.squeeze(1))

        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight.to(x.dtype)) * self.scale

    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, Int8(child))
    return net


def rates(torch, net, compiled):
    """Prefill as it is; decoding compiled into a graph, or why it does not compile."""
    with torch.inference_mode():
        ids, prompt = torch.randint(0, 1000, (1, 576), device="cuda"), torch.arange(576, device="cuda")
        one, at = ids[:, :1].contiguous(), torch.tensor([64], device="cuda")
        for _ in range(3):
            net(ids, prompt)
        found = {"prefill_576": 576 / median(torch, lambda: net(ids, prompt), 9)}
        if not compiled:
            return {**found, "decode": 1 / median(torch, lambda: net(one, at), 50)}
        try:
            quick = torch.compile(net, mode="reduce-overhead", fullgraph=True)
            for _ in range(5):
                quick(one, at)
            return {**found, "decode": 1 / median(torch, lambda: quick(one, at), 50)}
        except Exception as error:  # a compiler that this machine lacks
            return {**found, "decode": f"does not compile: {type(error).__name__}"}


def pytorch(shapes, quick):
    """What PyTorch does, three ways: yields a peer and the answer of one model, or why there is none."""
    names = ("pytorch-bf16", "pytorch-bf16-compiled", "pytorch-int8-compiled")
    try:
        import torch

        why = None if torch.cuda.is_available() else "PyTorch finds no card"
    except ImportError:
        why = "PyTorch cannot be imported"
    if why or quick:
        yield from ((name, {"why": why or "only its presence was asked for"}) for name in names)
        return
    for shape in shapes:
        for name in names:
            try:
                net = model(torch, *SHAPES[shape], room=1024)
                net = to_int8(torch, net) if "int8" in name else net
                answer = rates(torch, net, "compiled" in name)
            except Exception as error:  # a card that is too small, for one
                answer = {"all": f"does not run: {type(error).__name__}: {error}"}
            yield name, {"version": torch.__version__, "models": {shape: answer}}
            net = None
            torch.cuda.empty_cache()


def measured(shapes, quick, offline):
    """Every peer's answers, one after the other."""
    yield from pytorch(shapes, quick)
    if of_llama := [shape for shape in shapes if shape != "S"]:
        yield from (("llama.cpp-q8_0", answer) for answer in card_llama.measure(of_llama, SHAPES, quick, offline))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=pathlib.Path, required=True)
    arguments.add_argument("--shapes", nargs="+", default=["S", "M", "L"], choices=sorted(SHAPES))
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--offline", action="store_true")
    arguments = arguments.parse_args()
    out, part = arguments.out, arguments.out.with_suffix(".part")
    found = json.loads(out.read_text("utf-8")) if out.exists() else {}
    for peer, answer in measured(arguments.shapes, arguments.quick, arguments.offline):
        models = found.get(peer, {}).get("models", {}) | answer.get("models", {})
        found[peer] = answer | {"models": models}
        part.write_text(json.dumps(found), "utf-8")
        part.rename(out)


main()
