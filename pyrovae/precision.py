"""Precision of float32 matrix products: changes torch's setting, which holds for the whole process, for a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pyrovae import arguments
from pyrovae.refusals import bad_value
from pyrovae.torch_private import Moved, private

PRECISIONS = ("highest", "medium")


def check_precision(precision: object, dtype: torch.dtype, device: torch.device) -> str:
    """Return ``precision`` if it is one of ``PRECISIONS`` and makes a difference on this processor.

    Raises:
        TypeError, ValueError: another value; or "medium" if products would equal those of "highest".
    """
    name = arguments.choice("precision", precision, PRECISIONS)
    if name == "medium":
        fix = 'Pass precision="highest".'
        if dtype != torch.float32:
            raise bad_value(
                "precision", "'highest' for a pair that is not in float32", f"'medium' for {dtype}", fix
            )
        if device.type == "cpu" and not _multiplies_bfloat16():
            raise bad_value(
                "precision", "'highest' on a processor without products in bfloat16", "'medium'", fix
            )
    return name


def _multiplies_bfloat16() -> bool:
    try:
        return bool(private("bf16_products")())
    except Moved:
        return False


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Run a block in which float32 matrices are multiplied in float32 ("highest") or bfloat16 ("medium")."""
    torch_backends: Any = torch.backends  # its members are created at run time, so mypy does not know them
    backends = [torch_backends.mkldnn.matmul, torch_backends.cuda.matmul]
    each = [backend.fp32_precision for backend in backends]
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the backends' settings differ
        before = precision
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for backend, own in zip(backends, each, strict=True):
            backend.fp32_precision = own
