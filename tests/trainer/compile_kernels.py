"""Compiles kernels for compute capability 9.0, with or without a GPU, and prints what each takes of it.

Not a test: `test_kernels_compile.py` runs it in a process of its own, in which Triton does not interpret.

    python compile_kernels.py linear norm rope swiglu cross_entropy        one line of JSON per kernel, types and tile
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from motet.trainer.kernels import cross_entropy, linear, norm, rope, rows, swiglu

TARGET = GPUTarget("cuda", 90, 32)
SIZES = {"bf16": 2, "fp16": 2, "fp32": 4}
IN_FLOAT32 = (
    "rstd_ptr",
    "partial_ptr",
    "sum_ptr",
    "cos_ptr",
    "sin_ptr",
    "scale_ptr",
    "nats_ptr",
    "loss_ptr",
    "gain_ptr",
)
"""Pointers to float32 whatever the rest is (`q_gain_ptr` and `residual_ptr` too: master weights and residual stream)."""


def compiled(kernel, word, constants, options):
    """`kernel` as it is launched with tensors of type `word` that begin at 16 bytes, and sizes that 16 divides."""
    while not isinstance(kernel, triton.JITFunction):
        kernel = kernel.fn
    signature = {name: "constexpr" if name in constants else kind(name, word) for name in kernel.arg_names}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, type_) in enumerate(signature.items())
        if type_ not in ("constexpr", "fp32") and name not in kernel.do_not_specialize
    }
    return triton.compile(ASTSource(kernel, signature, constants, divisible), target=TARGET, options=options)


def kind(name, word):
    """An argument's type, by its name."""
    if name in ("eps", "z_loss"):
        return "fp32"
    if not name.endswith("_ptr"):
        return "i32"
    if name in ("offsets_ptr", "place_ptr", "label_ptr"):
        return "*i32" if name == "offsets_ptr" else "*i64"
    return "*fp32" if name in IN_FLOAT32 or name in ("q_gain_ptr", "k_gain_ptr", "residual_ptr") else f"*{word}"


def of_linear(word):
    class Operand:
        def element_size(self):
            return SIZES[word]

    for tile in linear._fitting(linear.TILES, {"x_ptr": Operand()}):
        yield linear.rows_kernel, {"stride_k": 1}, tile.all_kwargs()
        yield linear.rows_kernel, {"stride_n": 1}, tile.all_kwargs()
        yield linear.weight_kernel, {}, tile.all_kwargs()


def of_norm(word):
    for C in (64, 4096, 8192):
        block, width, warps = norm._block(C)
        sizes = {"ROWS": block, "WIDTH": width}
        for add in (False, True):
            yield norm.norm_kernel, sizes | {"ADD": add}, {"num_warps": warps}
        yield norm.norm_backward_kernel, sizes | {"STRIP": 64}, {"num_warps": warps}
    yield rows.sum_strips, {"ROWS": 64, "WIDTH": rows.SUM_WIDTH, "DEPTH": rows.SUM_DEPTH}, {}


def of_rope(word):
    for heads in ((16, 16, 128), (32, 8, 128), (32, 32, 128)):
        for flags in ({"NORM": True, "MOVE": True}, {"NORM": False, "MOVE": False}):
            blocks = dict(zip(("HEADS", "KV_HEADS", "HALF"), rope._blocks(*heads), strict=True))
            warps = {"num_warps": rope._warps(heads[0])}
            yield rope.rope_kernel, flags | blocks, warps
            yield rope.rope_backward_kernel, flags | blocks | {"STRIP": rope.STRIP}, warps


def of_swiglu(word):
    yield swiglu.swiglu_kernel, {"WIDTH": swiglu.WIDTH}, {}
    yield swiglu.swiglu_backward_kernel, {"WIDTH": swiglu.WIDTH}, {}


def of_cross_entropy(word):
    for learn in (False, True):
        yield cross_entropy.softmax_kernel, {"LEARN": learn, "WIDTH": cross_entropy.WIDTH}, {"num_warps": 8}


def main():
    for module in sys.argv[1:]:
        for word in SIZES:
            seen = set()
            for kernel, constants, options in globals()[f"of_{module}"](word):
                if word != "bf16" and kernel in seen:
                    continue  # of the other types one of each kernel
                seen.add(kernel)
                tile = {name: value for name, value in options.items() if name.isupper()}
                made = compiled(kernel, word, constants | tile, {k: v for k, v in options.items() if k not in tile})
                told = {"kernel": made.metadata.name, "type": word, "shared": made.metadata.shared}
                told["wgmma"] = "wgmma" in made.asm["ptx"]
                print(json.dumps(told | {"constants": constants, "options": options}), flush=True)


if __name__ == "__main__":
    main()
