"""A job of two processes: each says the same of the network, and together they train as one does.

The job has four devices, two in each process, and so has the one process that it is compared with.
"""

import contextlib
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support.sharding.two_processes import RUNS

ROOT = pathlib.Path(__file__).parents[2]
CODE = (
    "import sys; from tests.support.sharding import two_processes as job; "
    "job.main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))"
)
SECONDS = 120
PROCESSES = (("pair", 0), ("pair", 1), ("alone", 0))


def free_addresses(count):
    """Addresses on which nothing listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def started(place, address, processes, rank, seed):
    """A process of a job, whose sets are in an order of its own."""
    known = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-W", "error", "-c", CODE, place, address, processes, rank]
    with (place / f"{rank}.log").open("wb") as log:
        return subprocess.Popen(
            [str(part) for part in command],
            env={**known, "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": str(seed)},
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def wait_for(happened, seconds=SECONDS):
    """Waits until something has happened, or time is up."""
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)


def is_over(running):
    """Whether all have ended, or one in failure: those that wait for it would wait for long."""
    codes = [each.poll() for each in running]
    return None not in codes or any(codes)


def run_all(place):
    """Runs the processes of both jobs at once, each with a log, and writes down how they ended."""
    pair, alone = free_addresses(2)
    running = []
    try:
        for (job, rank), processes, address in zip(
            PROCESSES, (2, 2, 1), (pair, pair, alone), strict=True
        ):
            (place / job).mkdir(exist_ok=True)
            running.append(started(place / job, address, processes, rank, seed=len(running) + 1))
        wait_for(lambda: is_over(running))
    finally:
        for each in running:
            each.kill()
            each.wait()
        (place / "codes").write_text(str([each.returncode for each in running]))
        (place / "codes").rename(place / "ended")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What was seen by the two processes of one job, and by the only one of another.

    Of pytest-xdist's workers the first that comes here runs them, and the others wait for it.
    """
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_processes"
    try:
        place.mkdir()
    except FileExistsError:
        wait_for((place / "ended").exists, SECONDS + 30)
    else:
        run_all(place)
    codes = (place / "ended").read_text()
    if codes != "[0, 0, 0]":
        logs = [
            f"{job} {rank}:\n{(place / job / f'{rank}.log').read_text()}" for job, rank in PROCESSES
        ]
        pytest.fail("\n".join([f"The processes ended with {codes}.", *logs]))
    return [pickle.loads((place / job / f"{rank}.pickle").read_bytes()) for job, rank in PROCESSES]


def bits(tree):
    return {path: leaf.tobytes() for path, leaf in tree.items()}


def test_the_processes_are_two_and_order_their_sets_differently(seen):
    assert [one["processes"] for one in seen] == [2, 2, 1]
    assert len({one["hash"] for one in seen}) == 3


def test_no_process_of_the_two_can_read_what_it_analyses(seen):
    first, second, alone = (one["refusals"] for one in seen)
    assert len(first) == 8  # five params, two statistics and the images
    assert all("non-addressable" in said for said in [*first.values(), *second.values()])
    assert not any("non-addressable" in said for said in alone.values())


KINDS = ("mask", "pickled", "labels", "text", "json", "html", "explain", "audit", "decay_mask")


@pytest.mark.parametrize("kind", KINDS)
def test_every_process_says_the_same_byte_for_byte(seen, kind):
    said = [{k: v for k, v in one["findings"].items() if kind in k} for one in seen]
    assert said[0]
    assert said[0] == said[1] == said[2]


def test_what_they_say_is_what_there_is_to_say(seen):
    said = seen[0]["findings"]
    assert said["linen: mask"] == "Mask(3 of 5 leaves decay; exempt: post/bias, post/scale)"
    assert said["linen: mask"] == said["program: mask"] == said["structure: mask"]
    assert said["linen: invariant mask"] == "Mask(1 of 5 leaves decay: stem/kernel)"
    assert "cancels" in said["linen: explain stem/kernel"]
    assert said["audit of ours: text"].startswith(
        "2 of 5 leaves decay"
    )  # keep_norm takes the stem's back
    assert said["audit of a bare adamw: text"].startswith(
        "5 of 5 leaves decay. What decays is wrong."
    )
    assert "post/scale" in said["audit of a bare adamw: text"]


def test_verify_draws_what_neither_process_can_read(seen):
    first, second, alone = (one["findings"]["verify"] for one in seen)
    assert first == second
    assert "all hold" in first
    assert first.endswith("`params` are known by shape only: weakness was not looked at.")
    assert "all hold" in alone


def test_every_finding_is_of_a_kind_that_is_compared(seen):
    kinds = (*KINDS, "verify")
    assert [k for k in seen[0]["findings"] if not any(kind in k for kind in kinds)] == []


@pytest.mark.parametrize("run", RUNS, ids=" by ".join)
def test_two_processes_train_bit_for_bit_as_one_with_as_many_devices(seen, run):
    first, second, alone = (one["runs"][run]["whole"] for one in seen)
    assert bits(first) == bits(second) == bits(alone)


@pytest.mark.parametrize("run", [run for run in RUNS if "replicated" in run], ids=" by ".join)
def test_all_four_devices_hold_the_same_bits(seen, run):
    first, second = (one["runs"][run]["copies"] for one in seen[:2])
    assert first
    for path, held in first.items():
        assert len({copy.tobytes() for copy in held + second[path]}) == 1, path
        assert len(held + second[path]) == 4


@pytest.mark.parametrize("run", RUNS[1:], ids=" by ".join)
def test_however_it_is_divided_it_is_the_same_training_to_rounding(seen, run):
    plain, other = (seen[0]["runs"][key]["whole"] for key in (RUNS[0], run))
    assert plain.keys() == other.keys()
    for path, leaf in plain.items():
        np.testing.assert_allclose(leaf, other[path], rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("run", RUNS, ids=" by ".join)
def test_every_param_moves_and_the_kept_norms_stay(seen, run):
    whole = seen[0]["runs"][run]["whole"]
    kernel = whole["['params']['stem']['kernel']"].astype(np.float64)
    kept = next(leaf for path, leaf in whole.items() if "kept_norm" in path)
    np.testing.assert_allclose(np.sqrt((kernel**2).sum((0, 1, 2))), kept.ravel(), rtol=1e-6)
    for path, start in seen[0]["start"].items():
        if "params" in path:
            assert (whole[path] != start).all(), path
