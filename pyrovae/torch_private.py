"""Every name of torch that is not part of its documented interface, each imported when it is used.

A release of torch may move such a name. Then steps and evaluations run without a trace, or draws use
torch's generator, and the reason says which name is missing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

NAMES = {
    "make_fx": "torch.fx.experimental.proxy_tensor.make_fx",
    "TorchDispatchMode": "torch.utils._python_dispatch.TorchDispatchMode",
    "inductor": "torch._inductor.compile",
    "FakeTensorMode": "torch._subclasses.FakeTensorMode",
    "ShapeEnv": "torch.fx.experimental.symbolic_shapes.ShapeEnv",
    "FakeTensorProp": "torch.fx.passes.fake_tensor_prop.FakeTensorProp",
    "tracing": "torch._guards.tracing",
    "TracingContext": "torch._guards.TracingContext",
    "global_pre_hooks": "torch.optim.optimizer._global_optimizer_pre_hooks",
    "global_post_hooks": "torch.optim.optimizer._global_optimizer_post_hooks",
    "forward_pre_hooks": "torch.nn.modules.module._global_forward_pre_hooks",
    "forward_hooks": "torch.nn.modules.module._global_forward_hooks",
    "backward_pre_hooks": "torch.nn.modules.module._global_backward_pre_hooks",
    "backward_hooks": "torch.nn.modules.module._global_backward_hooks",
    "get_cpp_compiler": "torch._inductor.cpp_builder.get_cpp_compiler",
    "InvalidCxxCompiler": "torch._inductor.exc.InvalidCxxCompiler",
    "CppCompileError": "torch._inductor.exc.CppCompileError",
    "vector_instructions": "torch._inductor.cpu_vec_isa.valid_vec_isa_list",
    "bf16_products": "torch.ops.mkldnn._is_mkldnn_bf16_supported",
}


#: The error of singular matrices: documented, but unknown to type checkers.
LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


class Moved(Exception):
    """The installed torch has no such name, in one line."""


def private(name: str) -> Any:
    """Return what torch has under one of ``NAMES``.

    Raises:
        Moved: the installed release has it elsewhere, or not at all.
    """
    found: Any = torch
    parts = NAMES[name].split(".")
    try:
        for end, part in enumerate(parts[1:], start=2):
            # Some packages of torch delete the names of their modules.
            found = getattr(found, part) if hasattr(found, part) else import_module(".".join(parts[:end]))
        return found
    except (ImportError, AttributeError) as error:
        raise Moved(f"torch {torch.__version__} has no {NAMES[name]}") from error
