"""Matrix products by the faster of torch's two libraries, which depends on the processor and the shape."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path

import torch
from torch import Tensor, fx

from pyrovae import storage
from pyrovae.precision import products
from pyrovae.torch_private import private

aten = torch.ops.aten

# oneDNN must take less than this share of the time of MKL, torch's default. The two measured equal on Intel's processors
# and differ by a factor of 2 on AMD's, so measurement noise does not decide.
_QUICKER = 0.7
_FEWEST = 1 << 22  # multiplications; below this, the overhead of a call exceeds the gain
_ROUNDS = 30


@torch.library.custom_op("pyrovae::onednn_product", mutates_args=())
def onednn_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a · b, of shapes (n, k) and (k, m), by oneDNN: in float32 as exact as MKL's."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return found


@onednn_product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def choose_products(module: fx.GraphModule) -> None:
    """Make every product in a graph, whose nodes know their shapes, use the library that is faster on this machine.

    If products are set to bfloat16, nothing changes.
    """
    if torch.get_float32_matmul_precision() != "highest":
        return
    for node in module.graph.nodes:
        if node.target is aten.mm.default:
            a, b = (argument.meta["val"] for argument in node.args)
            if onednn_is_quicker(_kind(a), _kind(b), torch.get_num_threads()):
                node.target = torch.ops.pyrovae.onednn_product.default
    module.recompile()


Kind = tuple[str, tuple[int, ...], tuple[int, ...]]


def _kind(tensor: Tensor) -> Kind:
    return f"{tensor.dtype} {tensor.device}", tuple(tensor.shape), tuple(tensor.stride())


@functools.cache
def onednn_is_quicker(left: Kind, right: Kind, threads: int) -> bool:
    """Return whether oneDNN multiplies such matrices in less than 0.7 of MKL's time: measured once on a machine."""
    (rows, inner), columns = left[1], right[1][1]
    usual = left[0] == right[0] == "torch.float32 cpu" and torch.backends.mkldnn.is_available()
    expanded = 0 in left[2] + right[2]  # memory with stride 0 cannot be filled for the measurement
    if not usual or expanded or rows * inner * columns < _FEWEST:
        return False
    path, key = memory(), f"{torch.__version__}, {threads} threads: {left[1:]} · {right[1:]}"
    if key not in (known := _read(path)):
        # Read again, because another process may have written; its results have priority.
        known = {key: _measure(left, right)} | _read(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.replace(path, json.dumps(known, indent=0).encode())
    return known[key]


def memory() -> Path:
    """Return the file with the measurements, in the cache folder of torch's compiler."""
    return Path(private("cache_dir")()) / "pyrovae_products.json"


def _read(path: Path) -> dict[str, bool]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _measure(left: Kind, right: Kind) -> bool:
    a, b = (torch.empty_strided(shape, stride).fill_(0.5) for _, shape, stride in (left, right))
    by_mkl: list[float] = []
    by_onednn: list[float] = []
    with torch.no_grad(), products("highest"):
        for _ in range(_ROUNDS):  # alternating and taking the minimum, so that other load affects both alike
            for way, found in ((torch.mm, by_mkl), (onednn_product, by_onednn)):
                started = time.perf_counter()
                way(a, b)
                found.append(time.perf_counter() - started)
    return min(by_onednn) < _QUICKER * min(by_mkl)
