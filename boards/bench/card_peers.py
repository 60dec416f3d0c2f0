"""PyTorch on the same card for the shapes that engines are compared at: bf16, compiled into CUDA graphs where that works.

    python3 boards/bench/card_peers.py [--shapes S M L]

Prints one JSON object: prefill of 576 tokens and decoding behind 64, tokens/s, medians.
"""

import argparse
import json
import statistics
import sys
import time

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

    return Model().cuda().to(torch.bfloat16).eval()


def median(torch, f, n):
    times = []
    for _ in range(n):
        torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--shapes", nargs="+", default=["S", "M", "L"])
    arguments = arguments.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("PyTorch is not here")
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no card")
    report = {"torch": torch.__version__, "device": torch.cuda.get_device_name(0), "models": {}}
    for shape in arguments.shapes:
        net = model(torch, *SHAPES[shape], room=1024)
        with torch.inference_mode():
            ids = torch.randint(0, 1000, (1, 576), device="cuda")
            prompt = torch.arange(576, device="cuda")
            one, at = ids[:, :1].contiguous(), torch.tensor([64], device="cuda")
            for _ in range(3):
                net(ids, prompt)
            found = {"prefill_576_tok_s": 576 / median(torch, lambda: net(ids, prompt), 9)}
            try:
                quick = torch.compile(net, mode="reduce-overhead", fullgraph=True)
                for _ in range(5):
                    quick(one, at)
                found["decode_compiled_tok_s"] = 1 / median(torch, lambda: quick(one, at), 50)
            except Exception as error:  # a compiler that this machine lacks
                found["decode_compiled"] = f"does not run: {type(error).__name__}"
            found["decode_tok_s"] = 1 / median(torch, lambda: net(one, at), 50)
        report["models"][f"{shape}-bf16"] = {name: round(value, 1) if isinstance(value, float) else value for name, value in found.items()}
        del net
        torch.cuda.empty_cache()
    print(json.dumps(report))


main()
