"""Compiles every kernel of runtime/src/cuda/kernels for every architecture, without a card, and prints what each uses.

    cargo xtask cubin [--json] [--out FOLDER]      (installs the two compilers that this needs)

Architectures and the compiler of each stand in runtime/src/cuda/sources.rs. Fails where a kernel does not compile, spills registers to
memory, or keeps an array there.
"""

import argparse
import ctypes
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "runtime/src/cuda/kernels"
ARCHITECTURE = re.compile(r"Architecture \{ sm: (\d+),.*?compiler: (\d+) \}")
# What the assembler says of a kernel, in two lines.
ENTRY = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_\d+'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers([^\n]*)",
    re.S,
)


def compiler(major):
    """The library of a compiler of NVIDIA that pip installed: nvidia-cuda-nvrtc-cu11, nvidia-cuda-nvrtc."""
    pattern = {11: "nvidia/cuda_nvrtc/lib/libnvrtc.so.11*", 13: "nvidia/cu13/lib/libnvrtc.so.13*"}[major]
    for folder in map(pathlib.Path, sys.path):
        for found in sorted(folder.glob(pattern)):
            return ctypes.CDLL(str(found))
    sys.exit(f"error: there is no compiler of CUDA {major} beside this Python; `cargo xtask cubin` installs it")


def compile_file(library, path, headers, sm):
    """The image of one file for one architecture, and the log."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
    texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))

    def call(name, *arguments):
        code = getattr(library, name)(*arguments)
        if code not in (0, 6):  # 6: the program has errors, which its log tells
            sys.exit(f"error: {name} gives {code} for {path.name}")
        return code

    call("nvrtcCreateProgram", ctypes.byref(program), path.read_text("utf-8").encode(), path.name.encode(), len(headers), texts, names)
    # No fused multiply-add: products and sums are rounded as on the CPU.
    options = [f"--gpu-architecture=sm_{sm}", "--fmad=false", "--std=c++17", "--ptxas-options=-v"]
    failed = call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options)))
    call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    call("nvrtcGetProgramLog", program, log)
    log = log.value.decode(errors="replace")
    if failed:
        sys.exit(f"error: {path.name} does not compile for sm_{sm}:\n{log}")
    call("nvrtcGetCUBINSize", program, ctypes.byref(size))
    image = ctypes.create_string_buffer(size.value)
    call("nvrtcGetCUBIN", program, image)
    call("nvrtcDestroyProgram", ctypes.byref(program))
    return image.raw, log


def main():
    arguments = argparse.ArgumentParser(description="Compiles the CUDA kernels for every board.")
    arguments.add_argument("--out", type=pathlib.Path, default=ROOT / "target/cubin", help="folder of the images")
    arguments.add_argument("--json", action="store_true", help="the table as JSON")
    arguments = arguments.parse_args()
    headers = {path.name: path.read_text("utf-8") for path in sorted(KERNELS.glob("*.cuh"))}
    architectures = ARCHITECTURE.findall((ROOT / "runtime/src/cuda/sources.rs").read_text("utf-8"))
    table, bad = [], []
    for sm, major in architectures:
        library, out = compiler(int(major)), arguments.out / f"sm_{sm}"
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(KERNELS.glob("*.cu")):
            image, log = compile_file(library, path, headers, sm)
            (out / f"{path.stem}.cubin").write_bytes(image)
            kernels = ENTRY.findall(log)
            if not kernels:
                sys.exit(f"error: the compiler says nothing of the kernels in {path.name} for sm_{sm}:\n{log}")
            for kernel, stack, stores, loads, registers, rest in kernels:
                shared = re.search(r"(\d+) bytes smem", rest)
                row = {
                    "kernel": kernel,
                    "arch": f"sm_{sm}",
                    "registers": int(registers),
                    "shared_bytes": int(shared.group(1)) if shared else 0,
                    "spill_bytes": int(stores) + int(loads),
                }
                table.append(row)
                if row["spill_bytes"] or int(stack):
                    bad.append(f"{kernel} for sm_{sm}: {row['spill_bytes']} bytes of spills, {stack} of stack")
    if arguments.json:
        print(json.dumps(table))
    else:
        names = [f"sm_{sm}" for sm, _ in architectures]
        print(f"{'registers, shared bytes':<20}" + "".join(f"{name:>14}" for name in names))
        for kernel in dict.fromkeys(row["kernel"] for row in table):
            cells = {row["arch"]: f"{row['registers']}, {row['shared_bytes']}" for row in table if row["kernel"] == kernel}
            print(f"{kernel:<23}" + "".join(f"{cells[name]:>14}" for name in names))
        print(f"{sum(p.stat().st_size for p in arguments.out.glob('sm_*/*.cubin'))} bytes in {arguments.out}", file=sys.stderr)
    if bad:
        sys.exit("error: kernels that keep registers in memory:\n" + "\n".join(bad))


main()
