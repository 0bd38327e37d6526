"""Blocks of rows, computed one after the other or by the workers of any ``concurrent.futures.Executor``.

A task is a run of consecutive blocks. It goes to a worker as bytes: the rows, their numbers and their keys. The pair goes
to every worker once, by cloudpickle, because scripts and notebooks define pairs that pickle cannot send. Noise is keyed by
rows, and a worker computes under the caller's settings. A block therefore has the same bits wherever and whenever it is
computed.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import pickle
import threading
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import cloudpickle
import torch

from pyrovae import threads
from pyrovae.checkpoints import Parts, machine, rounding
from pyrovae.evaluation import Evaluation
from pyrovae.pair import Batch, behaviour, probe
from pyrovae.precision import products
from pyrovae.refusals import Refused, bad_type, bad_value, refusal, shown
from pyrovae.tracing import Runner
from pyrovae.turns import takes_turns

T = TypeVar("T")

#: Returns the value of one block, from its number and its rows.
Compute = Callable[[int, slice], Any]
#: Returns the function of an evaluation's blocks; a function of a module, or a ``functools.partial`` of one.
Make = Callable[[Evaluation], Compute]
#: Where blocks are computed; None computes them here.
Workers = Executor | Callable[[], Executor] | None

_SECONDS = 1.0  # that a task should take: short enough to repeat, long enough to be worth sending
_AHEAD = 2  # tasks in flight for each worker, so that memory does not grow with the rows
_WORKERS = 32  # assumed of an executor that does not tell
_TRIES = 5  # of a task whose worker died
_ROWS_COMPARED = 32  # on which a worker shows that its pair is the caller's; more if values beside x differ

_HOME = uuid.uuid4().hex  # a forked process has its parent's; a thread has that of its process
_known: dict[
    str, tuple[Evaluation, Make, Mapping[str, Any]]
] = {}  # in a worker: the last evaluation, by its hash


class Pool:
    """An executor, or one that a function returns, which is called again when its workers have died.

    Raises:
        TypeError: ``executor`` is neither; or, when it is used, the function returns something else.
    """

    def __init__(self, executor: Executor | Callable[[], Executor]) -> None:
        if not isinstance(executor, Executor) and not callable(executor):
            raise bad_type(
                "executor",
                "an Executor of concurrent.futures, or a function that returns one",
                shown(executor),
                "Pass ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn')), for example.",
            )
        self._make = None if isinstance(executor, Executor) else executor
        self._executor = executor if isinstance(executor, Executor) else None
        self._calls = itertools.count()

    def submit(self, compute: Callable[..., tuple[str, Any]], *task: Any) -> Future[tuple[str, Any]]:
        """Send a task; raise ``RuntimeError`` if the workers have died and there is no function to make others."""
        try:
            return self._now.submit(work, next(self._calls), _place(), compute, *task)
        except RuntimeError:  # broken, or shut down
            if self._make is None:
                raise
            self._executor = None
            return self._now.submit(work, next(self._calls), _place(), compute, *task)

    @property
    def workers(self) -> int:
        """How many workers there are. Executors tell by different names, some of them private."""
        executor: Any = self._now
        local = getattr(executor, "_max_workers", None)  # ProcessPoolExecutor and loky
        each, cores = torch.get_num_threads(), os.cpu_count() or 1
        if local and each > 1 and local * each > cores:
            warnings.warn(
                f"executor: {local} workers of {each} threads wait for one another on {cores} cores. Workers have as "
                "many threads as the caller: call torch.set_num_threads(1) first.",
                stacklevel=2,
            )
        nthreads = getattr(getattr(executor, "_client", None), "nthreads", None)  # Dask
        told = local or getattr(executor, "num_workers", None) or (nthreads and sum(nthreads().values()))
        return int(told or _WORKERS)

    @property
    def _now(self) -> Executor:
        if self._executor is None and self._make is not None:
            self._executor = self._make()
        if not isinstance(self._executor, Executor):
            raise bad_type(
                "executor", "a function that returns an Executor", shown(self._executor), "Return the pool."
            )
        return self._executor


def computed(
    evaluation: Evaluation,
    blocks: Sequence[slice],
    make: Make,
    parts: Parts | None = None,
    pool: Pool | None = None,
) -> Iterator[tuple[slice, Any]]:
    """Yield the rows and the value of every block, as they become known; blocks in ``parts`` are read, others kept there.

    Raises:
        BrokenExecutor: workers died too often.
        ValueError: the pair cannot be sent to workers, or these are threads, forked, or another version's.
    """
    if pool is None:
        compute = _made(make, evaluation)
        for number, rows in enumerate(blocks):
            block = functools.partial(compute, number, rows)
            yield rows, block() if parts is None else parts.keep(number, block)
        return
    left = []
    for number, rows in enumerate(blocks):
        if parts is not None and number in parts:
            yield rows, parts.keep(number, lambda: None)
        else:
            left.append(number)
    with closing(_spread(evaluation, blocks, left, make, pool, parts is not None)) as found:
        for number, value in found:
            yield (
                blocks[number],
                value if parts is None else parts.keep(number, functools.partial(_same, value)),
            )


def _same(value: Any) -> Any:
    return value


def _made(make: Make, evaluation: Evaluation) -> Callable[[int, slice], Any]:
    """Return the function of a block, which computes with the evaluation's number of threads."""
    compute = make(evaluation)

    def block(number: int, rows: slice) -> Any:
        with threads.using(evaluation.threads):
            return compute(number, rows)

    return block


# ---------------------------------------------------------------------------------------------------------
# The caller's side


@dataclass
class _Task:
    """Consecutive blocks, or the tasks of ``each``, by their numbers; and how often their workers have died."""

    numbers: list[int]
    tries: int = 0


_Running = dict[Future[tuple[str, Any]], _Task]


def _spread(
    evaluation: Evaluation,
    blocks: Sequence[slice],
    left: Sequence[int],
    make: Make,
    pool: Pool,
    kept: bool,
) -> Generator[tuple[int, Any], None, None]:
    """Yield number and value of the blocks that are left, in any order; ``kept`` says whether finished ones are safe."""
    if not left:
        return
    setup = _packed(evaluation, make)
    key = hashlib.sha256(setup).hexdigest()
    ahead, size = _AHEAD * pool.workers, 1
    waiting, running = deque(left), _Running()

    def died(task: _Task, error: Exception) -> BrokenExecutor:
        return _broken(evaluation, blocks, task, error, kept)

    def here(task: _Task) -> None:
        compute = _made(make, evaluation)
        for number in task.numbers:
            compute(number, blocks[number])

    def submit(task: _Task, *, known: bool = True) -> None:
        rows = _rows(evaluation, blocks, task)
        try:
            running[pool.submit(_work, key, None if known else setup, rows)] = task
        except RuntimeError as error:
            raise died(task, error) from error

    def fill() -> None:
        while waiting and len(running) < ahead:
            # The last tasks are short, so that all workers end together.
            most = min(size, math.ceil(len(waiting) / ahead))
            numbers = [waiting.popleft()]
            while len(numbers) < most and waiting[0] == numbers[-1] + 1:
                numbers.append(waiting.popleft())
            submit(_Task(numbers))

    with closing(_ended(running, fill, submit, died)) as ended:
        for task, state, answer in ended:
            if state == "unknown":
                submit(task, known=False)
            elif state == "failed":
                _fail_here(functools.partial(here, task), _named(evaluation, blocks, task), answer)
            else:
                values, seconds, reason = pickle.loads(answer)
                size = max(1, min(2 * size, int(len(task.numbers) * _SECONDS / max(seconds, 1e-9))))
                if evaluation.runner is not None and reason is not None:
                    evaluation.runner.reason = reason
                yield from zip(task.numbers, values, strict=True)


def _ended(
    running: _Running,
    fill: Callable[[], None],
    submit: Callable[[_Task], None],
    died: Callable[[_Task, Exception], BrokenExecutor],
) -> Generator[tuple[_Task, str, Any], None, None]:
    """Yield tasks as they end, with their states and answers; a task whose worker died is sent again, up to a limit.

    ``fill`` sends further tasks, at the start and after each that has ended. Tasks that are left at the end are cancelled.
    """
    try:
        fill()
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=_is_done, reverse=True):
                task = running.pop(future)
                try:
                    state, answer = future.result()
                except Exception as error:  # of the executor: workers return the errors of what they compute
                    task.tries += 1
                    if task.tries == _TRIES:
                        raise died(task, error) from error
                    submit(task)
                    continue
                if state == "refused":
                    raise Refused(answer)
                yield task, state, answer
                fill()
    finally:
        for future in running:
            future.cancel()


def each(tasks: Sequence[Callable[[], T]], pool: Pool) -> list[T]:
    """Return what every task returns, computed by workers; a task depends on nothing but itself and the caller's settings.

    Raises:
        Exception: the error of a task that fails in a worker and here, as without an executor.
        RuntimeError: a task fails in a worker, and not here.
        BrokenExecutor: workers died too often.
        ValueError: a task cannot be sent to workers, or these are threads, forked, or another version's.
    """
    found, waiting, running = dict[int, T](), deque(range(len(tasks))), _Running()

    def named(task: _Task) -> str:
        return f"task {task.numbers[0]} of {len(tasks)}"

    def died(task: _Task, error: Exception) -> BrokenExecutor:
        return _died(error, named(task), "Repeat the call with a new executor.")

    def submit(task: _Task) -> None:
        packed = _pickled((tasks[task.numbers[0]], _settings()))
        try:
            running[pool.submit(_work_alone, packed)] = task
        except RuntimeError as error:
            raise died(task, error) from error

    def fill() -> None:
        while waiting and len(running) < _AHEAD * pool.workers:
            submit(_Task([waiting.popleft()]))

    with closing(_ended(running, fill, submit, died)) as ended:
        for task, state, answer in ended:
            (number,) = task.numbers
            if state == "failed":
                _fail_here(tasks[number], named(task), answer)
            found[number] = pickle.loads(answer)
    return [found[number] for number in range(len(tasks))]


def _is_done(future: Future[tuple[str, Any]]) -> bool:
    return not future.cancelled() and future.exception() is None and future.result()[0] == "done"


def _packed(evaluation: Evaluation, make: Make) -> bytes:
    """Return all but the rows as bytes; raise ``ValueError`` if the pair cannot be sent."""
    none, runner = evaluation.numbers[:0], evaluation.runner
    plain = replace(
        evaluation,
        batch={},
        numbers=none,
        keys=none,
        runner=None,
        source=None,
        simulated=None,
        out_of=evaluation.out_of or len(evaluation),
    )
    traced = None if runner is None else (runner.compile, runner.main)
    rows = probe(evaluation.structure, evaluation.batch, _ROWS_COMPARED)
    tried = rows, behaviour(evaluation.model, rows, evaluation.seed)
    return _pickled((plain, make, _settings() | {"runner": traced, "tried": tried}))


def _settings() -> dict[str, Any]:
    """Return what a worker needs to compute the caller's bits."""
    return _switches() | {"precision": torch.get_float32_matmul_precision(), "machine": _machine()}


def _switches() -> dict[str, Any]:
    """Return the settings that ``_switch`` takes."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "onednn": torch.backends.mkldnn.enabled,
    }


def _switch(settings: Mapping[str, Any]) -> None:
    backend: Any = torch.backends.mkldnn
    torch.set_num_threads(settings["threads"])
    torch.set_default_dtype(settings["dtype"])
    torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["warn_only"])
    backend.enabled = settings["onednn"]


def _pickled(task: Any) -> bytes:
    try:
        packed: bytes = cloudpickle.dumps(task)
    except Exception as error:
        raise bad_value(
            "executor",
            "a pair that can be sent to other processes",
            f"{type(error).__name__}: {error}",
            "Open files, locks and generators inside the functions that use them, or leave out executor.",
        ) from error
    return packed


def _machine() -> dict[str, Any]:
    from pyrovae import __version__

    return {**machine(), "pyrovae": __version__}


def _rows(evaluation: Evaluation, blocks: Sequence[slice], task: _Task) -> bytes:
    """Return the rows of a task as bytes, with the blocks among them."""
    first, last = blocks[task.numbers[0]].start, blocks[task.numbers[-1]].stop
    rows = slice(first, last)
    # Copies, because a pickle of a view holds all that it is a view of.
    within = [slice(blocks[n].start - first, blocks[n].stop - first) for n in task.numbers]
    return pickle.dumps(
        (evaluation.part(rows), evaluation.numbers[rows].clone(), evaluation.keys[rows].clone(), within)
    )


def _named(evaluation: Evaluation, blocks: Sequence[slice], task: _Task) -> str:
    numbers = evaluation.numbers[blocks[task.numbers[0]].start : blocks[task.numbers[-1]].stop]
    return f"rows {int(numbers[0])} to {int(numbers[-1])} of {evaluation.argument}"


def _broken(
    evaluation: Evaluation, blocks: Sequence[slice], task: _Task, error: Exception, kept: bool
) -> BrokenExecutor:
    saved = (
        "Finished blocks are in the checkpoint's folder: repeat the call with a new executor to compute the rest."
        if kept
        else "Pass checkpoint=… as well, so that finished blocks are kept."
    )
    return _died(error, _named(evaluation, blocks, task), saved)


def _died(error: Exception, what: str, fix: str) -> BrokenExecutor:
    expected = f"workers that live, in {_TRIES} tries if the executor recovers"
    came = f"{type(error).__name__} while {what} and others were computed: {error}"
    fix += " A pool that does not recover is replaced if executor is a function that returns one."
    return BrokenExecutor(refusal("executor", expected, came, fix))


def _fail_here(compute: Callable[[], Any], what: str, failure: str) -> None:
    """Compute what failed in a worker, and raise its error as without an executor."""
    try:
        compute()
    except Exception as error:
        error.add_note(f"Raised for {what}.")
        raise
    raise RuntimeError(
        refusal(
            "executor",
            "workers that compute what this process computes",
            f"{failure} for {what}, which raises nothing here",
            "Give workers the same modules, files and memory.",
        )
    )


# ---------------------------------------------------------------------------------------------------------
# The worker's side


_Place = tuple[str, int, int]


def _place() -> _Place:
    return _HOME, os.getpid(), threading.get_ident()


def work(call: int, caller: _Place, compute: Callable[..., tuple[str, Any]], *task: Any) -> tuple[str, Any]:
    """Return what became of a task: "done" with its answer, "unknown" without ``setup``, "refused" or "failed" with a text.

    ``compute`` is ``_work`` or ``_work_alone``. ``call`` numbers the calls, because Dask answers equal ones by the result of
    the first.
    """
    home, *place = caller
    if home == _HOME and place != [os.getpid(), threading.get_ident()]:
        return "refused", refusal(
            "executor",
            "workers in processes of their own, not forked",
            "a thread, whose calls take turns with the caller's"
            if place[0] == os.getpid()
            else "a forked process, in which torch's threads can hang",
            "Pass ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn')), for example.",
        )
    try:
        return compute(*task)
    except Exception as error:
        if getattr(error, "argument", "") == "executor":
            return "refused", str(error)
        return "failed", f"{type(error).__name__}: {error}"


@takes_turns
def _work_alone(task: bytes) -> tuple[str, Any]:
    compute, settings = pickle.loads(task)
    with _as_caller(settings):
        return "done", cloudpickle.dumps(compute())


@takes_turns
def _work(key: str, setup: bytes | None, rows: bytes) -> tuple[str, Any]:
    started = time.perf_counter()
    if setup is not None:
        plain, make, settings = pickle.loads(setup)
        if settings["runner"] is not None:
            plain = replace(plain, runner=Runner(plain.model, *settings["runner"]))
        with _as_caller(settings):
            _check_same(plain, *settings.pop("tried"))
        _known.clear()
        _known[key] = (plain, make, settings)
    if key not in _known:
        return "unknown", None
    plain, make, settings = _known[key]
    with _as_caller(settings):
        batch, numbers, keys, blocks = pickle.loads(rows)
        compute = _made(make, replace(plain, batch=batch, numbers=numbers, keys=keys))
        values = [compute(number, block) for number, block in enumerate(blocks)]
    reason = None if plain.runner is None else plain.runner.reason
    return "done", pickle.dumps((values, time.perf_counter() - started, reason))


def _check_same(evaluation: Evaluation, rows: Batch, expected: Mapping[str, torch.Tensor]) -> None:
    """Raise ``ValueError`` unless a pair computes in this process what it computes in the caller's.

    Functions and classes of modules that can be imported are sent by name, so they read the worker's values.
    """
    tolerance = rounding(rows["x"].dtype)
    for name, came in behaviour(evaluation.model, rows, evaluation.seed).items():
        if not torch.allclose(came, expected[name], rtol=tolerance, atol=tolerance, equal_nan=True):
            apart = (came - expected[name]).abs().nan_to_num(math.inf, math.inf, math.inf)
            raise bad_value(
                "executor",
                "workers that compute what this process computes",
                f"{name} other by {float(apart.max()):.3g} nats. Values that this process set in imported modules, in their "
                "classes, or in environment variables may be missing in workers",
                "Set them in the pool's initializer as well, or keep them in attributes of the model.",
            )


@contextmanager
def _as_caller(settings: Mapping[str, Any]) -> Iterator[None]:
    """Run a block under the caller's settings of torch that change bits, and restore the worker's.

    Raises:
        ValueError: the worker has other versions than the caller, or a processor of another kind.
    """
    before = _switches()
    try:
        _switch(settings)
        here, there = _machine(), settings["machine"]
        for name in there:
            if here.get(name) != there[name]:
                fix = "Install the same versions on machines of one kind; other ones give other bits."
                expected = f"workers with the caller's {name}, {there[name]}"
                raise bad_value("executor", expected, str(here.get(name)), fix)
        with products(settings["precision"]):
            yield
    finally:
        _switch(before)
