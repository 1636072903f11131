"""Checkpoints to read: whole as the libraries write them, and raw as an attacker would."""

import json
import logging
import struct
import warnings
import zipfile

import flax.serialization
import msgpack
import numpy as np
import safetensors.numpy

PARAMS = {
    "conv": {"kernel": np.ones((3, 3, 1, 8), np.float32)},
    "head": {"bias": np.ones(2, np.float32), "kernel": np.ones((8, 2), np.float32)},
    "post": {"bias": np.ones(8, np.float32), "scale": np.ones(8, np.float32)},
}
STATS = {"post": {"mean": np.ones(8, np.float32), "var": np.ones(8, np.float32)}}
VARIABLES = {"params": PARAMS, "batch_stats": STATS}
ROLES = {
    "conv/kernel": "weight",
    "head/bias": "bias",
    "head/kernel": "weight",
    "post/bias": "norm_bias",
    "post/scale": "norm_scale",
}


def flat(tree, separator="/", prefix=""):
    """The leaves by their joined names."""
    made = {}
    for key, child in tree.items():
        name = f"{prefix}{separator}{key}" if prefix else str(key)
        made |= flat(child, separator, name) if isinstance(child, dict) else {name: child}
    return made


def orbax(path, tree, *, ocdbt=True, zarr3=False):
    """Saves a tree with Orbax."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ocp.PyTreeCheckpointer(use_ocdbt=ocdbt, use_zarr3=zarr3) as checkpointer:
            checkpointer.save(path, tree)
    return path


def managed(path, steps, **items):
    """Saves items with a CheckpointManager."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args = saved["default"] if set(saved) == {"default"} else ocp.args.Composite(**saved)
        with ocp.CheckpointManager(path) as manager:
            for step in steps:
                manager.save(step, args=args)
    return path


def flax_msgpack(path, tree):
    """Saves a tree as Flax does."""
    path.write_bytes(flax.serialization.to_bytes(tree))
    return path


def tensors(path, tree, separator="."):
    """Saves a tree with the library of safetensors."""
    safetensors.numpy.save_file(flat(tree, separator), path, metadata={"format": "flax"})
    return path


def npz(path, tree, *, compressed=False):
    """Saves a tree with numpy."""
    (np.savez_compressed if compressed else np.savez)(path, **flat(tree))
    return path


WRITERS = {
    "orbax": lambda place, tree: orbax(place / "orbax", tree),
    "orbax_directories": lambda place, tree: orbax(place / "plain", tree, ocdbt=False),
    "orbax_zarr3": lambda place, tree: orbax(place / "zarr3", tree, ocdbt=False, zarr3=True),
    "orbax_zarr3_store": lambda place, tree: orbax(place / "zarr3", tree, zarr3=True),
    "orbax_manager": lambda place, tree: managed(place / "steps", [3, 20], default=tree),
    "msgpack": lambda place, tree: flax_msgpack(place / "model.msgpack", tree),
    "msgpack_no_suffix": lambda place, tree: flax_msgpack(place / "checkpoint_7", tree),
    "safetensors": lambda place, tree: tensors(place / "model.safetensors", tree),
    "safetensors_slashes": lambda place, tree: tensors(place / "other_suffix", tree, "/"),
    "npz": lambda place, tree: npz(place / "model.npz", tree),
    "npz_compressed": lambda place, tree: npz(place / "model.npz", tree, compressed=True),
}
"""Every way in which one tree may be stored."""


def raw_tensors(path, header, data=b"", length=None):
    """A safetensors file of whatever header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def raw_zip(path, members, **fields):
    """A zip of whatever members; `fields` overwrite what it says of each."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = fields.get("external_attr", 0)
            archive.writestr(info, data)
    return path


def npy(shape=(2,), descr="<f4", data=None, version=1):
    """An npy file of whatever header."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}}}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + (data or b"\0" * 8)


def packed_array(shape=(2,), dtype="float32", data=b"\0" * 8, code=1):
    """An array as Flax packs it."""
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


def raw_msgpack(path, tree):
    """A msgpack file of whatever tree, or of whatever bytes."""
    path.write_bytes(tree if isinstance(tree, bytes) else msgpack.packb(tree))
    return path
