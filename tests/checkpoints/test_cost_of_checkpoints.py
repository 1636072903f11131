"""The report on ten gigabytes costs what their names cost: the arrays are never read.

The checkpoints are sparse: they claim ten gigabytes, have that size, and take a few pages of disk.
"""

import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import msgpack
import numpy as np
import pytest

from tests.support.checkpoints import stored_files as files
from tests.support.checkpoints.peak_memory import Growth

ROOT = Path(__file__).parents[2]
COUNT = 160
SHAPE = (4096, 4096)
BYTES = 4 * SHAPE[0] * SHAPE[1]
assert COUNT * BYTES >= 10 * 10**9

MOST_SECONDS = 2.0
MOST_GROWTH = 500 << 20

MEASURED = """
import sys, time
import optax_bnmask.checkpoints as checkpoints, optax_bnmask.report
from tests.support.checkpoints.peak_memory import Growth
growth, start = Growth(), time.perf_counter()
text = checkpoints.analyze_checkpoint(sys.argv[1]).to_text()
seconds = time.perf_counter() - start
print(seconds, growth.bytes())
print(text)
"""
"""Prints the seconds and the bytes that a report takes beyond the import of the library."""


def names():
    return [f"block_{index}/dense/kernel" for index in range(COUNT)]


def small():
    """The same names with arrays of one element, for Orbax to write."""
    one = np.ones((1, 1), np.float32)
    return {"params": {f"block_{index}": {"dense": {"kernel": one}} for index in range(COUNT)}}


def orbax_directories(place):
    path = files.orbax(place / "plain", small(), ocdbt=False)
    for description in path.glob("params.*/.zarray"):
        record = json.loads(description.read_text()) | {"shape": SHAPE, "chunks": SHAPE}
        description.write_text(json.dumps(record))
        os.truncate(description.with_name("0.0"), BYTES)
    return path


def orbax_store(place):
    import tensorstore

    path = files.orbax(place / "store", small())
    base = {"driver": "ocdbt", "base": path.resolve().as_uri() + "/"}
    for name in names():
        spec = {"driver": "zarr", "kvstore": base, "path": f"params.{name.replace('/', '.')}"}
        tensorstore.open(spec).result().resize(exclusive_max=SHAPE, expand_only=True).result()
    data = sorted((path / "d").iterdir())
    for file in data:  # whatever else is in a file of a store comes after what its index points at
        os.truncate(file, COUNT * BYTES // len(data))
    return path


def flax_msgpack(place):
    with (place / "model.msgpack").open("wb") as file:
        file.write(msgpack.packb({"params": None})[:-1] + b"\xde" + struct.pack(">H", COUNT))
        for name in names():
            start = b"\x93" + msgpack.packb(SHAPE) + msgpack.packb("float32")
            start += b"\xc6" + struct.pack(">I", BYTES)
            head = b"\xc9" + struct.pack(">Ib", len(start) + BYTES, 1)
            file.write(msgpack.packb(name) + head + start)
            file.seek(BYTES, os.SEEK_CUR)
        file.truncate()
    return place / "model.msgpack"


def safetensors(place):
    header = {
        name: {"dtype": "F32", "shape": SHAPE, "data_offsets": [i * BYTES, (i + 1) * BYTES]}
        for i, name in enumerate(names())
    }
    path = files.raw_tensors(place / "model.safetensors", header)
    os.truncate(path, path.stat().st_size + COUNT * BYTES)
    return path


def npz(place):
    """One member after another, each with its header, and a hole for the array."""
    path, listed = place / "model.npz", []
    with path.open("wb") as file:
        for name in names():
            info = zipfile.ZipInfo(f"{name}.npy")
            start = files.npy(SHAPE, data=b"\0")[:-1]
            info.file_size = info.compress_size = len(start) + BYTES
            info.header_offset, info.CRC = file.tell(), 0
            file.write(info.FileHeader() + start)
            file.seek(BYTES, os.SEEK_CUR)
            listed.append(info)
        file.truncate()
        archive = zipfile.ZipFile(file, "a")
        archive.filelist = listed
        archive._didModify = True
        archive.close()
    return path


def size_of(path):
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")))


@pytest.mark.parametrize(
    "kind",
    [orbax_directories, orbax_store, flax_msgpack, safetensors, npz],
    ids=lambda f: f.__name__,
)
def test_ten_gigabytes_take_two_seconds_and_no_memory(kind, tmp_path):
    path = kind(tmp_path)
    assert size_of(path) >= 10 * 10**9
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, path],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    measured, _, report = done.stdout.partition("\n")
    seconds, grown = map(float, measured.split())
    assert f"{COUNT} leaves, {COUNT * SHAPE[0] * SHAPE[1]:,} parameters" in report
    assert seconds < MOST_SECONDS
    assert grown < MOST_GROWTH


def test_a_peak_that_is_over_is_seen_and_an_earlier_one_is_not():
    """So that the measure above measures."""
    bytearray(200 << 20)
    growth = Growth()
    assert growth.bytes() < 100 << 20
    bytearray(200 << 20)
    assert growth.bytes() > 100 << 20
