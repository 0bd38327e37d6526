"""The import order is the architecture; importing is cheap and changes nothing."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pyrovae

PACKAGE = Path(pyrovae.__file__).parent

#: From the ground up: a file imports only from lines above its own.
ORDER = [
    "torch_private",
    "rounding",
    "frames",
    "sparse",
    "chunks",
    "refusals",
    "pages",
    "arguments",
    "entries",
    "arrays",
    "rows",
    "identity",
    "turns",
    "registry",
    "networks",
    "diagnostics",
    "chain_diagnostics",
    "noise",
    "row_noise",
    "precision",
    "threads",
    "storage",
    "checkpoints",
    "progress",
    "distributions",
    "supports",
    "flows",
    "priors",
    "likelihoods",
    "encoders",
    "tables",
    "parameters",
    "python_values",
    "model",
    "pair",
    "tracing",
    "evaluation",
    "log_weights",
    "evidence",
    "convert",
    "baselines",
    "imputation",
    "outlying",
    "embedding",
    "saving",
    "training",
    "diagnosis",
    "comparison",
    "sklearn",
    "datasets",
    "plots",
    "reporting",
    "demo",
    "cli",
    "__main__",
]
#: Imported where used, so that ``import pyrovae`` costs little more than ``import pyro``.
LATE = {
    "pandas",
    "arviz",
    "sklearn",
    "matplotlib",
    "rich",
    "typer",
    "scipy",
    "zuko",
    "pooch",
    "xarray",
    "nutpie",
    "threadpoolctl",
    "jinja2",
}


def imports(path, top_level_only=False):
    """The modules a file imports; those under TYPE_CHECKING are not imported."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            if node.module == "pyrovae":
                yield from (f"pyrovae.{alias.name}" for alias in node.names)


#: ``save`` is a method of models, which imports the module that writes them when it is called.
UP = {("model.py", "pyrovae.saving"), ("base.py", "pyrovae.saving")}


def module_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_file_belongs_to_a_module():
    assert {module_of(path) for path in FILES} == set(ORDER)
    # A package hides the module of its name.
    assert [path for path in FILES if path.with_suffix("").is_dir()] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = ORDER.index(module_of(path))
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "pyrovae" and len(parts) > 1 and parts[1] in ORDER and (path.name, name) not in UP:
            assert ORDER.index(parts[1]) <= own, f"{path.name} imports {name} from above"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_pair_touches_poutine(path):
    touches = any(name.startswith("pyro.poutine") for name in imports(path)) or "poutine" in {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "pyro"
        for alias in node.names
    }
    assert not touches or module_of(path) == "pair"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_module_imports_arviz(path):
    assert module_of(path) == "chain_diagnostics" or not any(
        name.startswith("arviz") for name in imports(path)
    )


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if module_of(p) not in ("sklearn", "cli") and p.name != "table.py"],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_heavy_libraries_are_imported_where_used(path):
    assert not {name.split(".")[0] for name in imports(path, top_level_only=True)} & LATE


def run(code):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_changes_nothing_and_brings_nothing_heavy():
    output = run(
        """
        import sys, torch, pyro
        state = torch.random.get_rng_state()
        switches = pyro.settings.get()
        validation = torch.distributions.Distribution._validate_args
        import pyrovae
        assert torch.equal(state, torch.random.get_rng_state())
        assert switches == pyro.settings.get()
        assert validation == torch.distributions.Distribution._validate_args
        assert len(pyro.get_param_store()) == 0
        assert torch.get_default_dtype() == torch.float32
        print(*sorted({"pandas", "arviz", "sklearn", "matplotlib", "rich", "typer", "nutpie"} & set(sys.modules)))
        """
    )
    assert output == ""


#: Functions that a user calls with many options; a command's options are its parameters.
MANY_OPTIONS = {"fit", "compare"} | set(pyrovae.evidence.METHODS)


def test_functions_are_short_and_have_few_parameters():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name not in MANY_OPTIONS:
                lines = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node):
                    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
                assert lines <= 60, f"{path.name}: {node.name} has {lines} lines without its docstring"
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                assert count <= 12, f"{path.name}: {node.name} has {count} parameters"


def test_no_check_is_an_assert():
    """``python -O`` leaves out asserts and what ``__debug__`` guards; test_bad_input.py has Pyro's validation off."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"{path}, line {node.lineno}"
            assert getattr(node, "id", "") != "__debug__", f"{path}, line {node.lineno}"


def test_nothing_public_is_undocumented():
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"
