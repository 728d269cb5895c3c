"""The order that the barrier of the grid kernel makes, judged on the compiled form.

All programs of a cooperative launch run together, in turns drawn by a seed. ttsem executes their
compiled form, and the wait, which is inline assembly, is modelled: it blocks until the counter has
reached the arrivals asked for, and acquires what the first so many arrivals released. Two accesses
to one cell, one of them a store, by two programs must be ordered by such pairs alone (vector
clocks), so a schedule that happens to give the right values proves nothing. Within a program the
threads are one: the barriers of a program and the caches are the static test's concern.
"""

import itertools
import random
import threading

import numpy as np
import pytest
import torch
from spectral_triton.kernels import grid_recurrence
from spectral_triton.kernels.configuration import GridConfig

pytestmark = pytest.mark.compiled
RELEASE, GPU = 3, 1  # Triton's numbers of a memory order and a scope


class Programs:
    """The programs of one launch, one at a time, and what each knows of the others' clocks."""

    def __init__(self, seed, missing_arrivals=0, released=True):
        self.choose = random.Random(seed).choice
        self.missing_arrivals, self.released = missing_arrivals, released
        self.turn = threading.Condition()
        self.waits = 0

    def run_grid(self, interp, fn, arguments):
        self.interp, self.memory = interp, interp.memory
        self.pids = [*itertools.product(*map(range, interp.num_programs))]
        self.clocks = {p: dict.fromkeys(self.pids, 0) | {p: 1} for p in self.pids}
        self.arrivals, self.history = {}, {p: [] for p in self.pids}
        self.ready = {p: lambda: True for p in self.pids}
        self.running, self.error = None, None
        for p in self.pids:
            self._note(p)
        threads = [threading.Thread(target=self._run, args=(p, fn, arguments)) for p in self.pids]
        for thread in threads:
            thread.start()
        with self.turn:
            self._pass_on()
        for thread in threads:
            thread.join()
        if self.error:
            raise self.error

    def _run(self, pid, fn, arguments):
        self._await(pid)
        try:
            if not self.error:
                self.interp.run(fn, list(arguments), pid)
        except BaseException as error:
            self.error = self.error or error
        with self.turn:
            del self.ready[pid]
            self._pass_on()

    def _pass_on(self):
        able = [p for p, ready in self.ready.items() if self.error or ready()]
        if self.ready and not able:
            self.error = AssertionError(f"all of {sorted(self.ready)} wait for each other")
            able = [*self.ready]
        self.running = self.choose(able) if able else None
        self.turn.notify_all()

    def _await(self, pid):
        with self.turn:
            self.turn.wait_for(lambda: self.running == pid)
        self.interp.program_id = self.memory.agent = pid

    def _yield(self, pid, ready):
        with self.turn:
            self.ready[pid] = ready
            self._pass_on()
        self._await(pid)
        self.ready[pid] = lambda: True
        if self.error:
            raise RuntimeError("another program failed")

    def _note(self, pid):
        """From here on in the log, the program's accesses have these clocks."""
        self.history[pid].append((len(self.memory.access_log), dict(self.clocks[pid])))

    def arrive(self, original, interp, op, operands):
        pid, counter = interp.program_id, int(np.asarray(operands[0]).reshape(-1)[0])
        results = original(interp, op, operands)
        ordered = op.attrs["sem"] == RELEASE and op.attrs["scope"] == GPU and self.released
        known = dict(self.clocks[pid]) if ordered else {}
        self.arrivals.setdefault(counter, []).append(known)
        self.clocks[pid][pid] += 1
        self._note(pid)
        self._yield(pid, lambda: True)
        return results

    def wait(self, interp, op, operands):
        assert "ld.acquire.gpu" in str(op.attrs["asm_string"])
        pid = interp.program_id
        counter, wanted = (int(np.asarray(a).reshape(-1)[0]) for a in operands)
        wanted = max(0, wanted - self.missing_arrivals)
        self._yield(pid, lambda: len(self.arrivals.get(counter, ())) >= wanted)
        # The later arrivals may not have been there yet.
        for known in self.arrivals.get(counter, [])[:wanted]:
            for p, clock in known.items():
                self.clocks[pid][p] = max(self.clocks[pid][p], clock)
        self._note(pid)
        self.waits += 1
        return [np.zeros((), np.int32)]

    def find_race(self, log):
        """Raises for two accesses to a cell that nothing orders."""
        written = [entry[3] for entry in log if entry[1] in "ws"]
        written = set(np.concatenate(written).tolist())
        events, position = {}, dict.fromkeys(self.pids, 0)
        for index, (pid, kind, op, addresses, _, _) in enumerate(log):
            history = self.history[pid]
            while position[pid] + 1 < len(history) and history[position[pid] + 1][0] <= index:
                position[pid] += 1
            clocks = history[position[pid]][1]
            for address in written.intersection(addresses.tolist()):
                for other, clock, store, other_op in events.setdefault(address, []):
                    unordered = other != pid and clocks[other] < clock
                    assert not (unordered and (store or kind != "r")), (
                        f"nothing orders {other_op[-200:]} of {other} before {op[-200:]} of {pid}"
                    )
                events[address].append((pid, clocks[pid], kind != "r", op))


@pytest.fixture
def programs(monkeypatch):
    """Launches under a model of the barrier; returns it and the kernels' results."""
    from ttsem import interp, ops, pidraces

    config = GridConfig(64, 16, num_warps=2, lanes_n=4)
    monkeypatch.setattr(grid_recurrence, "grid_config", lambda n, dtype: config)
    monkeypatch.setattr(grid_recurrence, "num_processors", lambda device: 4)
    atomic = ops.OPS["tt.atomic_rmw"]

    def launch(problem, dtype, device, **faults):
        alone = problem.kernels("grid", dtype, device, False)
        model = Programs(**faults)
        with monkeypatch.context() as patch:
            patch.setattr(interp.Interp, "run_grid", lambda *a: model.run_grid(*a))
            patch.setattr(pidraces, "find_race", model.find_race)
            patch.setitem(ops.OPS, "tt.elementwise_inline_asm", model.wait)
            patch.setitem(ops.OPS, "tt.atomic_rmw", lambda *a: model.arrive(atomic, *a))
            return model, alone, problem.kernels("grid", dtype, device, True)

    return launch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [[3, 3, 3], [5, 3, 1]])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_access_is_ordered(recurrence_problem, programs, sizes, reverse, dtype, seed, device):
    packed = len(set(sizes)) > 1
    problem = recurrence_problem(17, 6, sizes, "tanh", reverse, packed)
    model, alone, together = programs(problem, dtype, device, seed=seed)
    assert model.waits == 4 * (2 * len(sizes) + 1)  # of four programs, forward and backward
    for expected, result in zip(alone, together, strict=True):
        assert torch.equal(expected, result)


@pytest.mark.parametrize("fault", [{"missing_arrivals": 1}, {"released": False}], ids=str)
def test_a_weaker_barrier_is_noticed(recurrence_problem, programs, fault, device):
    problem = recurrence_problem(17, 6, [3, 3, 3])
    with pytest.raises(AssertionError, match="nothing orders"):
        programs(problem, torch.float64, device, seed=0, **fault)
