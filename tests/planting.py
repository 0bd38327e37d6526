"""Plants a mistake in one function of the package and runs the test that has to catch it.

Pytest collects the tests once. A child process is forked for each mistake; it compiles the function's file with
the mistake in it and gives the new code to the function that is already loaded, and to functions made inside it.
So a mistake costs one fork and one test. A test that fails catches it; a failing fixture does not. The suite shows
that the same tests pass where nothing is planted.
"""

import ast
import gc
import os
import re
import sys
import threading
import time
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import pyrovae

TESTS = Path(__file__).resolve().parent
PACKAGE = Path(pyrovae.__file__).resolve().parent


class Bug(NamedTuple):
    """A mistake: what stands in place of a pattern in a function, and the test that catches it."""

    file: str
    function: str  # its qualified name: "function", "Class.method"
    pattern: str | re.Pattern[str]  # matches once in the function: a literal, or a regular expression
    planted: str
    test: str  # file::name, or file::name[parameters]; without them, every one until one fails


class NotPlanted(Exception):
    """A bug whose function, pattern or test is no longer there."""


def planted(source: str, bug: Bug) -> str:
    """The source with the mistake in it."""
    lines = source.splitlines(keepends=True)
    found = [node for name, node in _functions(ast.parse(source)) if name == bug.function]
    if len(found) != 1:
        raise NotPlanted(f"{bug.file} has {len(found)} functions {bug.function!r}; expected one")
    start, end = found[0].lineno - 1, found[0].end_lineno
    text = "".join(lines[start:end])
    literal = isinstance(bug.pattern, str)
    pattern = re.compile(re.escape(bug.pattern)) if literal else bug.pattern
    shown = bug.pattern if literal else pattern.pattern
    matches = len(pattern.findall(text))
    if matches != 1:
        raise NotPlanted(f"{bug.function} in {bug.file} matches {shown!r} {matches} times; expected once")
    return "".join([*lines[:start], pattern.sub(lambda _: bug.planted, text), *lines[end:]])


def _functions(tree: ast.AST, prefix: str = "") -> Iterable[tuple[str, ast.FunctionDef]]:
    """The functions of a module and the methods of its classes, by qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        else:
            yield from _functions(node, f"{prefix}{node.name}." if isinstance(node, ast.ClassDef) else prefix)


def plant(bug: Bug, loaded: Iterable[types.FunctionType]) -> None:
    """Give the function, among those that are loaded, the code with the mistake in it."""
    path = PACKAGE / bug.file
    module = compile(planted(path.read_text(), bug), str(path), "exec", dont_inherit=True)
    codes = {code.co_qualname: code for code in _codes(module) if _is_within(code, bug.function)}
    own = [
        function
        for function in loaded
        if function.__code__.co_filename == str(path) and function.__code__.co_qualname in codes
    ]
    if not own:
        raise NotPlanted(f"{bug.function} of {bug.file} is not loaded")
    for function in own:
        function.__code__ = codes[function.__code__.co_qualname]


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


def _is_within(code: types.CodeType, function: str) -> bool:
    return code.co_qualname == function or code.co_qualname.startswith(function + ".<locals>.")


class Planter:
    """A plugin of pytest's: in place of the tests, each mistake with its test in a child of its own."""

    def __init__(self, bugs: Mapping[str, Bug], children: int):
        self.bugs = bugs
        self.children = children
        self.missed: list[str] = []
        self._failed: list[str] = []  # phases of tests, in a child

    def pytest_configure(self, config: pytest.Config) -> None:
        config.option.tbstyle = "native"  # pytest's own tracebacks read every module's file, for each failure

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.append(report.when)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            raise SystemExit(report.longreprtext)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if threading.active_count() > 1:
            raise SystemExit("collecting the tests started a thread: a fork is not safe")
        gc.unfreeze()  # conftest.py froze what the tests imported
        self._loaded = [
            found
            for found in gc.get_objects()
            if type(found) is types.FunctionType and found.__code__.co_filename.startswith(str(PACKAGE))
        ]
        gc.freeze()  # the collector leaves alone what parent and children share
        waiting = list(self.bugs)
        running: dict[int, tuple[str, float]] = {}
        while waiting or running:
            while waiting and len(running) < self.children:
                name = waiting.pop(0)
                running[self._fork(self.bugs[name], session.items)] = name, time.monotonic()
            pid, status = os.wait()
            name, start = running.pop(pid)
            self._say(name, os.waitstatus_to_exitcode(status), time.monotonic() - start)
        return True

    def _say(self, name: str, code: int, seconds: float) -> None:
        if code != 1:
            self.missed.append(name)
        word = {
            0: "NOT CAUGHT: the test passes",
            1: "caught",
            2: "NOT PLANTED: see above",
            3: "NOT CAUGHT: a fixture fails, the test does not",
        }
        said = word.get(code, f"NOT CAUGHT: exit code {code}")
        print(f"{seconds:5.1f} s  {name:<60} {said}", flush=True)

    def _fork(self, bug: Bug, items: list[pytest.Item]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 4
        try:
            code = self._catch(bug, items)
        except NotPlanted as error:
            print(error, file=sys.stderr, flush=True)
            code = 2
        finally:
            os._exit(code)

    def _catch(self, bug: Bug, items: list[pytest.Item]) -> int:
        """The exit code of a child: 1 where the bug's test fails, 0 where it passes."""
        file, _, name = bug.test.partition("::")
        own = [item for item in items if item.path.name == file and name in (item.name, item.originalname)]
        if not own:
            raise NotPlanted(f"no test {bug.test}")
        try:
            plant(bug, self._loaded)
        except (SyntaxError, ValueError) as error:  # of code that closes over other variables than before
            raise NotPlanted(f"{bug.function} of {bug.file}: {error}") from error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        for item in own:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            if "call" in self._failed:
                return 1
        return 3 if self._failed else 0


def _import_libraries() -> None:
    """What fits and evaluations import on their way, once for all children."""
    import arviz  # noqa: F401
    import pyro.infer.autoguide  # noqa: F401
    import sklearn.decomposition
    import sklearn.mixture  # noqa: F401
    import torch._dynamo
    import torch.fx.experimental.proxy_tensor  # noqa: F401


def run(bugs: Mapping[str, Bug], children: int) -> list[str]:
    """Plant the bugs one by one, and say of each whether its test caught it. Returns those that were not caught."""
    _import_libraries()
    torch.set_num_threads(1)  # one thread in the parent: a fork copies no others
    planter = Planter(bugs, children)
    files = sorted({bug.test.partition("::")[0] for bug in bugs.values()})
    options = ["-s", "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:xdist", "-o", "addopts="]
    code = pytest.main(
        [*options, "--rootdir", str(TESTS.parent), *(str(TESTS / file) for file in files)], plugins=[planter]
    )
    if code:
        raise SystemExit(f"pytest ended with {code!r}")
    return planter.missed
