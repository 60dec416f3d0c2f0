"""The vision part of a Janus or Chameleon folder as an ONNX graph, for `saccade-convert convert FOLDER OUT --vision-graph FILE`.

    python3 convert/tests/vision_graph.py FOLDER FILE.onnx

FOLDER is laid out as on the hub (config.json, processor_config.json, *.safetensors). Janus becomes its vision transformer with the
projection, `pixel_values [1, 3, side, side]` into `image_features [1, patches, d_model]`; Chameleon the encoder of its VQGAN,
`pixel_values [1, 3, height, width]` into `latents [1, code_dim, rows, columns]`. Weights keep their type and are cast to F32 in the
graph. Needs Python alone: ONNX is protobuf, and of that a graph takes numbers, texts and messages in messages.

The operations are those of transformers' JanusVisionModel, JanusVisionAlignerMLP and ChameleonVQVAEEncoder, in opset 17.
"""

import json
import math
import struct
import sys
from pathlib import Path

OPSET, IR_VERSION = 17, 8
FLOAT, INT64, FLOAT16, BFLOAT16 = 1, 7, 10, 16
TYPES = {"F32": FLOAT, "F16": FLOAT16, "BF16": BFLOAT16}
# A protobuf file ends at 2 GiB.
MAX_BYTES = (2 << 30) - 1
GROUPS = 32


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def field(number, value):
    """A field of a protobuf message: a number, a text, or bytes (a message too)."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value & (1 << 64) - 1)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def attribute(name, value):
    """AttributeProto: an integer, a float, or integers."""
    out = field(1, name)
    if isinstance(value, float):
        return out + varint(2 << 3 | 5) + struct.pack("<f", value) + field(20, 1)
    if isinstance(value, int):
        return out + field(3, value) + field(20, 2)
    return out + b"".join(field(8, each) for each in value) + field(20, 7)


def tensor(name, kind, shape, data):
    """TensorProto."""
    return b"".join(field(1, dim) for dim in shape) + field(2, kind) + field(8, name) + field(9, data)


def value_info(name, shape):
    """ValueInfoProto of an F32 tensor."""
    dims = b"".join(field(1, field(1, dim)) for dim in shape)
    return field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, dims)))


class Weights:
    """The tensors of a folder, read when they are asked for."""

    def __init__(self, folder):
        self.found = {}
        for path in sorted(folder.glob("*.safetensors")):
            if path.name == "golden.safetensors":
                continue
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                for name, about in json.loads(file.read(length)).items():
                    if name != "__metadata__":
                        self.found[name] = (path, 8 + length, about)

    def read(self, name):
        if name not in self.found:
            sys.exit(f"the folder has no tensor `{name}`")
        path, base, about = self.found[name]
        begin, end = about["data_offsets"]
        with path.open("rb") as file:
            file.seek(base + begin)
            return about["dtype"], about["shape"], file.read(end - begin)


class Graph:
    """Nodes and initializers in the making. Methods take and give names of values."""

    def __init__(self, weights):
        self.weights, self.nodes, self.initializers, self.cast, self.count = weights, [], [], {}, 0

    def node(self, op, *inputs, output=None, **attributes):
        self.count += 1
        output = output or f"{op}_{self.count}"
        message = b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, op)
        message += b"".join(field(5, attribute(*each)) for each in attributes.items())
        self.nodes.append(field(1, message))
        return output

    def constant(self, kind, shape, data):
        self.count += 1
        name = f"constant_{self.count}"
        self.initializers.append(field(5, tensor(name, kind, shape, data)))
        return name

    def integers(self, *values):
        return self.constant(INT64, [len(values)], struct.pack(f"<{len(values)}q", *values))

    def number(self, value):
        return self.constant(FLOAT, [], struct.pack("<f", value))

    def weight(self, name):
        """A tensor of the checkpoint, as F32."""
        if name not in self.cast:
            dtype, shape, data = self.weights.read(name)
            if dtype not in TYPES:
                sys.exit(f"tensor `{name}` is {dtype}, which is no float that ONNX has")
            self.initializers.append(field(5, tensor(name, TYPES[dtype], shape, data)))
            self.cast[name] = name if dtype == "F32" else self.node("Cast", name, to=FLOAT)
        return self.cast[name]

    def reshape(self, x, *shape):
        return self.node("Reshape", x, self.integers(*shape))

    def linear(self, x, stem):
        turned = self.node("Transpose", self.weight(stem + ".weight"), perm=[1, 0])
        return self.node("Add", self.node("MatMul", x, turned), self.weight(stem + ".bias"))

    def conv(self, x, stem, stride=1, pads=(0, 0, 0, 0)):
        weight, bias = self.weight(stem + ".weight"), self.weight(stem + ".bias")
        return self.node("Conv", x, weight, bias, strides=[stride, stride], pads=list(pads))

    def layer_norm(self, x, stem, eps):
        weight, bias = self.weight(stem + ".weight"), self.weight(stem + ".bias")
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps)

    def gelu(self, x):
        """`x · Φ(x)` by the error function, not its approximation by tanh."""
        half = self.node("Mul", x, self.number(0.5))
        erf = self.node("Erf", self.node("Mul", x, self.number(math.sqrt(0.5))))
        return self.node("Mul", half, self.node("Add", erf, self.number(1.0)))

    def swish(self, x):
        return self.node("Mul", x, self.node("Sigmoid", x))

    def group_norm(self, x, stem, shape):
        """Norm over groups of channels: an instance norm of each group, then the weights of each channel."""
        ones = self.constant(FLOAT, [GROUPS], struct.pack("<f", 1.0) * GROUPS)
        zeros = self.constant(FLOAT, [GROUPS], bytes(4 * GROUPS))
        groups = self.reshape(x, 1, GROUPS, -1)
        normed = self.reshape(self.node("InstanceNormalization", groups, ones, zeros, epsilon=1e-6), *shape)
        of_channel = [self.reshape(self.weight(stem + end), 1, -1, 1, 1) for end in (".weight", ".bias")]
        return self.node("Add", self.node("Mul", normed, of_channel[0]), of_channel[1])

    def write(self, path, inputs, outputs):
        """ModelProto."""
        graph = b"".join(self.nodes) + field(2, "vision") + b"".join(self.initializers)
        graph += field(11, value_info(*inputs)) + field(12, value_info(*outputs))
        opset = field(1, "") + field(2, OPSET)
        model = field(1, IR_VERSION) + field(2, "saccade vision_graph.py") + field(8, opset) + field(7, graph)
        if len(model) > MAX_BYTES:
            sys.exit(f"the graph has {len(model)} bytes, more than the {MAX_BYTES} of an ONNX file")
        path.write_bytes(model)


def janus(graph, config):
    """Vision transformer and projection. Returns the shapes that go in and come out."""
    vision = config["vision_config"]
    side, patch, d, heads = (vision[key] for key in ("image_size", "patch_size", "hidden_size", "num_attention_heads"))
    places, width = (side // patch) ** 2, d // heads
    eps = vision.get("layer_norm_eps", 1e-6)
    stem = "model.vision_model."
    x = graph.conv("pixel_values", stem + "embeddings.patch_embedding", stride=patch)
    x = graph.node("Transpose", graph.reshape(x, 1, d, places), perm=[0, 2, 1])
    x = graph.node("Add", x, graph.weight(stem + "embeddings.position_embedding.weight"))
    for layer in range(vision["num_hidden_layers"]):
        block = f"{stem}encoder.layers.{layer}."
        normed = graph.layer_norm(x, block + "layer_norm1", eps)
        q, k, v = (
            graph.node("Transpose", graph.reshape(graph.linear(normed, f"{block}self_attn.{part}_proj"), 1, places, heads, width), perm=perm)
            for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
        )
        scores = graph.node("Mul", graph.node("MatMul", q, k), graph.number(width**-0.5))
        seen = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), v)
        seen = graph.reshape(graph.node("Transpose", seen, perm=[0, 2, 1, 3]), 1, places, d)
        x = graph.node("Add", x, graph.linear(seen, block + "self_attn.projection_layer"))
        normed = graph.layer_norm(x, block + "layer_norm2", eps)
        inner = graph.gelu(graph.linear(normed, block + "mlp.fc1"))
        x = graph.node("Add", x, graph.linear(inner, block + "mlp.fc2"))
    x = graph.layer_norm(x, stem + "post_layernorm", eps)
    x = graph.linear(x, "model.aligner.fc1")
    for layer in range(vision.get("depth", 2) - 1):
        x = graph.linear(graph.gelu(x), f"model.aligner.hidden_layers.{layer}")
    graph.node("Identity", x, output="image_features")
    return ("pixel_values", [1, 3, side, side]), ("image_features", [1, places, config["text_config"]["hidden_size"]])


def chameleon(graph, config, processor):
    """The encoder of the VQGAN, up to the vectors that are coded."""
    vq = config["vq_config"]
    height, width = processor["crop_size"]["height"], processor["crop_size"]["width"]
    stem = "model.vqmodel.encoder."
    base, levels = vq["base_channels"], vq["channel_multiplier"]

    def residual(x, name, before, after):
        shape = [1, before, h, w]
        y = graph.swish(graph.group_norm(x, name + ".norm1", shape))
        y = graph.conv(y, name + ".conv1", pads=(1, 1, 1, 1))
        y = graph.swish(graph.group_norm(y, name + ".norm2", [1, after, h, w]))
        y = graph.conv(y, name + ".conv2", pads=(1, 1, 1, 1))
        return graph.node("Add", graph.conv(x, name + ".nin_shortcut") if before != after else x, y)

    def attention(x, name, channels):
        normed = graph.group_norm(x, name + ".norm", [1, channels, h, w])
        q, k, v = (graph.reshape(graph.conv(normed, f"{name}.{part}"), 1, channels, h * w) for part in "qkv")
        scores = graph.node("MatMul", graph.node("Transpose", q, perm=[0, 2, 1]), k)
        weights = graph.node("Softmax", graph.node("Mul", scores, graph.number(channels**-0.5)), axis=-1)
        seen = graph.node("MatMul", v, graph.node("Transpose", weights, perm=[0, 2, 1]))
        return graph.node("Add", x, graph.conv(graph.reshape(seen, 1, channels, h, w), name + ".proj_out"))

    h, w, channels = height, width, base
    x = graph.conv("pixel_values", stem + "conv_in", pads=(1, 1, 1, 1))
    for level, multiplier in enumerate(levels):
        for block in range(vq["num_res_blocks"]):
            x = residual(x, f"{stem}down.{level}.block.{block}", channels, base * multiplier)
            channels = base * multiplier
        if level + 1 < len(levels):
            # A row and a column of zeros behind the picture, none before it.
            x = graph.conv(x, f"{stem}down.{level}.downsample.conv", stride=2, pads=(0, 0, 1, 1))
            h, w = h // 2, w // 2
    x = residual(x, stem + "mid.block_1", channels, channels)
    x = attention(x, stem + "mid.attn_1", channels)
    x = residual(x, stem + "mid.block_2", channels, channels)
    x = graph.swish(graph.group_norm(x, stem + "norm_out", [1, channels, h, w]))
    x = graph.conv(graph.conv(x, stem + "conv_out", pads=(1, 1, 1, 1)), "model.vqmodel.quant_conv")
    graph.node("Identity", x, output="latents")
    return ("pixel_values", [1, 3, height, width]), ("latents", [1, vq["embed_dim"], h, w])


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((folder / "config.json").read_text())
    graph = Graph(Weights(folder))
    kind = config["model_type"]
    if kind == "janus":
        shapes = janus(graph, config)
    elif kind == "chameleon":
        older = folder / "preprocessor_config.json"
        newer = folder / "processor_config.json"
        processor = json.loads(older.read_text()) if older.exists() else json.loads(newer.read_text())["image_processor"]
        shapes = chameleon(graph, config, processor)
    else:
        sys.exit(f"model_type is `{kind}`; this makes the graphs of janus and chameleon")
    graph.write(out, *shapes)


if __name__ == "__main__":
    main()
