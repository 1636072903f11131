"""Files that are damaged, foreign or built to harm: each a sentence, and nothing of them is run."""

import io
import json
import os
import pickle
import struct
import zipfile

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optax_bnmask import checkpoints
from optax_bnmask.errors import StructureError
from tests.support.checkpoints import stored_files as files
from tests.support.checkpoints.hostile import DEEP, refused
from tests.support.checkpoints.peak_memory import little_memory


@pytest.fixture(autouse=True)
def _no_file_takes_memory():
    with little_memory():
        yield


class Bomb:
    """Whoever unpickles it is told."""

    def __reduce__(self):
        return os.abort, ()


def entry(shape=(2,), dtype="F32", data_offsets=(0, 8)):
    return {"shape": shape, "dtype": dtype, "data_offsets": data_offsets}


SAFETENSORS = {
    "header_of_an_exbibyte": ({"length": 2**60, "header": {}}, r"claims 1,152,921,504,606,846,976"),
    "header_beyond_the_end": ({"length": 1000, "header": {}}, "claims 1,000 bytes of a file of 10"),
    "no_header": ({"length": 0, "header": b""}, "header must be JSON"),
    "not_json": ({"header": b"{pickle.loads}"}, "header must be JSON: Expecting property"),
    "not_utf8": ({"header": b'{"\xff": 1}'}, "header must be JSON"),
    "not_an_object": ({"header": b"[1, 2]     "}, "must be a JSON object"),
    "nested_deep": ({"header": DEEP}, "nested too deep"),
    "one_name_twice": ({"header": b'{"a": {}, "a": {}}'}, "key 'a' stands twice"),
    "field_twice": ({"header": b'{"a": {"dtype": "F32", "dtype": "I8"}}'}, "'dtype' stands twice"),
    "entry_is_a_number": ({"header": {"a": 1}}, "entry 'a' is 1, not a description"),
    "unknown_dtype": ({"header": {"a": entry(dtype="O")}}, "the dtype 'O', which no array"),
    "dtype_is_a_list": ({"header": {"a": entry(dtype=["F32"])}}, "which no array of JAX has"),
    "negative_size": ({"header": {"a": entry(shape=[-2])}}, r"the shape \[-2\], which no array"),
    "size_is_true": ({"header": {"a": entry(shape=[True])}}, r"\[True\], which no array has"),
    "size_is_a_float": ({"header": {"a": entry(shape=[2.0])}}, r"\[2.0\], which no array has"),
    "shape_is_text": ({"header": {"a": entry(shape="22")}}, "the shape '22', which no array has"),
    "shape_is_missing": ({"header": {"a": entry(shape=None)}}, "the shape None"),
    "size_overflows": ({"header": {"a": entry(shape=[2**63])}}, "more than can be stored"),
    "product_overflows": ({"header": {"a": entry(shape=[2**32] * 2)}}, "more than can be stored"),
    "zero_hides_a_size": ({"header": {"a": entry(shape=[0, 2**63])}}, "more than can be stored"),
    "number_of_many_digits": (
        {"header": b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}"},
        "header must be JSON",
    ),
    "a_thousand_axes": ({"header": {"a": entry(shape=[1] * 1000)}}, "which no array has"),
    "offsets_missing": ({"header": {"a": entry(data_offsets=None)}}, "not two offsets"),
    "offsets_of_three": ({"header": {"a": entry(data_offsets=[0, 8, 9])}}, "not two offsets"),
    "offsets_true": ({"header": {"a": entry(data_offsets=[False, 8])}}, "not two offsets"),
    "offsets_back": ({"header": {"a": entry(data_offsets=[8, 0])}}, "lies at .8, 0. of 8 bytes"),
    "offsets_negative": ({"header": {"a": entry(data_offsets=[-8, 0])}}, "lies at"),
    "offsets_beyond": ({"header": {"a": entry(data_offsets=[8, 16])}}, "lies at .8, 16. of 8"),
    "bytes_do_not_fit": ({"header": {"a": entry(shape=[3])}}, "has 8 bytes, .* needs 12"),
    "below_an_array": (
        {"header": {"a": entry(), "a.b": entry()}},
        "'a/b' is below an array",
    ),
    "above_an_array": ({"header": {"a.b": entry(), "a": entry()}}, "two of one name, 'a'"),
    "name_is_half_a_character": (
        {"header": b'{"\\ud800": %s}' % json.dumps(entry()).encode()},
        "is no text",
    ),
    "names_nested_deep": ({"header": {".".join("a" * 100): entry()}}, "nested too deep"),
    "name_of_controls": ({"header": {"\x1b[2J\n": entry(shape=[3])}}, r"'\\x1b\[2J\\n' has 8"),
    "name_without_end": ({"header": {"a" * 10_000: entry(shape=[3])}}, r"'a+\.\.\.a+' has 8"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_hostile_safetensors(case, tmp_path):
    fields, said = SAFETENSORS[case]
    refused(
        files.raw_tensors(tmp_path / "x.safetensors", data=b"\0" * 8, **fields)
        if case not in {"header_beyond_the_end", "no_header"}
        else files.raw_tensors(tmp_path / "x.safetensors", **fields),
        said,
    )


def ext(*arguments, **fields):
    return msgpack.packb({"w": files.packed_array(*arguments, **fields)})


NAME = b"\x81\xa1w"
"""A dict of one key, `w`."""
MSGPACK = {
    "cut_off": (ext()[:-3], "it claims"),
    "more_after_the_end": (ext() + b"\0", "of its .* bytes it ends"),
    "map_of_four_billion": (b"\xdf\xff\xff\xff\xff", "claims 8,589,934,590 values"),
    "list_of_four_billion": (NAME + b"\xdd\xff\xff\xff\xff", "claims 4,294,967,295 values"),
    "bytes_of_four_gigabytes": (NAME + b"\xc6\xff\xff\xff\xff", "claims 4,294,967,295 more"),
    "string_of_four_gigabytes": (NAME + b"\xdb\xff\xff\xff\xff", "at byte 3 is cut off"),
    "extension_of_four_gigabytes": (
        NAME + b"\xc9\xff\xff\xff\xff\x01",
        "claims 4,294,967,295 more",
    ),
    "array_beyond_its_extension": (
        NAME + b"\xc7\x03\x01\x93\x91\x02" + msgpack.packb("float32") + msgpack.packb(b"\0" * 8),
        "must have a shape, a dtype and its bytes",
    ),
    "numbers_without_end": (NAME + b"\x91" * 20 + b"\xdd\x00\x00\x10\x00", "claims 4,096 values"),
    "a_long_string_that_is_there": (
        msgpack.packb({"w": "a" * (20 << 20)}),
        "a string of more than 65,536 bytes",
    ),
    "a_long_string": (
        msgpack.packb({"w": "a" * 100_000}),
        "a string of more than 65,536 bytes, no name",
    ),
    "nested_deep_maps": (NAME * 100_000 + b"\xc0", "nested too deep"),
    "nested_deep_lists": (NAME + b"\x91" * 100_000 + b"\xc0", "nested too deep"),
    "nested_extensions": (
        NAME + msgpack.packb(msgpack.ExtType(1, b"\x93" + b"\x91" * 1000)),
        "nested too deep",
    ),
    "unknown_extension": (ext(code=77), "an extension 77, which Flax has not"),
    "negative_extension": (msgpack.packb({"w": msgpack.Timestamp(1)}), "an extension -1"),
    "empty_extension": (NAME + b"\xc7\x00\x01", "it claims 1 more"),
    "extension_is_no_triple": (
        msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb([1, 2]))}),
        "must have a shape, a dtype and its bytes",
    ),
    "triple_without_bytes": (ext(data="text"), "must have a shape, a dtype and its bytes"),
    "triple_with_more": (
        msgpack.packb(
            {"w": msgpack.ExtType(1, msgpack.packb(((2,), "float32", b"\0" * 8)) + b"\0")}
        ),
        "must have a shape, a dtype and its bytes",
    ),
    "object_dtype": (ext(dtype="O"), "the dtype 'O', which no array"),
    "object_dtype_in_full": (ext(dtype="object"), "the dtype 'object', which no array"),
    "record_dtype": (ext(dtype="f4,O"), "which no array"),
    "dtype_is_a_number": (ext(dtype=4), "the dtype 4, which no array"),
    "negative_size": (ext(shape=(-2,)), r"the shape \[-2\], which no array has"),
    "overflowing_size": (ext(shape=(2**63,)), "more than can be stored"),
    "overflowing_product": (ext(shape=(2**32, 2**32)), "more than can be stored"),
    "float_size": (ext(shape=(2.0,)), r"the shape \[2.0\], which no array has"),
    "shape_is_a_string": (ext(shape="22"), "the shape '22', which no array has"),
    "shape_is_nothing": (ext(shape=None), "the shape None, which no array has"),
    "bytes_do_not_fit": (ext(shape=(3,)), "has 8 bytes, .* needs 12"),
    "one_key_twice": (b"\x82\xa1w\x01\xa1w\x02", "'w' stands twice"),
    "one_key_twice_as_a_number": (b"\x82\xa11\x01\x01\x02", "The key '1' stands twice"),
    "key_is_a_dict": (b"\x81\x80\x01", "a key is {}, no name"),
    "key_is_nothing": (b"\x81\xc0\x01", "a key is None, no name"),
    "key_is_no_text": (b"\x81\xa1\xff\x01", "is no text"),
    "byte_that_is_never_written": (NAME + b"\xc1", "that msgpack never writes"),
    "chunks_without_a_shape": (
        msgpack.packb({"w": {"__msgpack_chunked_array__": True}}),
        "must have a shape and chunks",
    ),
    "chunks_of_text": (
        msgpack.packb(
            {"w": {"__msgpack_chunked_array__": True, "shape": {}, "chunks": {"0": "a"}}}
        ),
        "must be arrays of one dtype",
    ),
    "chunks_do_not_fill": (
        msgpack.packb(
            {
                "w": {
                    "__msgpack_chunked_array__": True,
                    "shape": {"0": 2**40},
                    "chunks": {"0": files.packed_array()},
                }
            }
        ),
        "has 8 bytes, .* needs 4,398,046,511,104",
    ),
    "chunks_of_a_strange_shape": (
        msgpack.packb(
            {
                "w": {
                    "__msgpack_chunked_array__": True,
                    "shape": {"x": 2},
                    "chunks": {"0": files.packed_array()},
                }
            }
        ),
        "which no array has",
    ),
}


@pytest.mark.parametrize("case", MSGPACK)
def test_hostile_msgpack(case, tmp_path):
    data, said = MSGPACK[case]
    refused(files.raw_msgpack(tmp_path / "x.msgpack", data), said)


def pickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], object), allow_pickle=True)
    return buffer.getvalue()


def bomb_of_a_header():
    """Four gigabytes of a header, which deflate to four megabytes; numpy would read them all."""
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b" " * (64 << 20)


NPZ = {
    "a_pickle": ({"w.npy": pickled()}, "holds Python objects, which only running a pickle"),
    "a_pickle_in_a_record": ({"w.npy": files.npy(descr=[("a", "O")])}, "holds Python objects"),
    "a_record": ({"w.npy": files.npy(descr=[("a", "<f4")])}, "which no array of JAX has"),
    "text": ({"w.npy": files.npy(descr="<U8")}, "which no array of JAX has"),
    "traversal": ({"../../etc/w.npy": files.npy()}, "'../../etc/w.npy' points out of it"),
    "traversal_inside": ({"a/../../w.npy": files.npy()}, "points out of it"),
    "absolute": ({"/etc/w.npy": files.npy()}, "'/etc/w.npy' points out of it"),
    "drive": ({"C:w.npy": files.npy()}, "'C:w.npy' points out of it"),
    "backslash": ({"a\\..\\w.npy": files.npy()}, "points out of it"),
    "foreign_member": ({"archive/data.pkl": pickle.dumps(Bomb())}, "'archive/data.pkl' is no npy"),
    "folder": ({"a/": b""}, "is no npy file"),
    "no_npy_inside": ({"w.npy": b"not numpy's"}, "has no npy header"),
    "empty_member": ({"w.npy": b""}, "has no npy header"),
    "cut_header": ({"w.npy": files.npy()[:20]}, "has no npy header"),
    "code_in_the_header": (
        {"w.npy": files.npy(shape="__import__('os').abort()").replace(b'"', b" ")},
        "has no npy header",
    ),
    "nested_header": (
        {"w.npy": files.npy(shape="A").replace(b"'A'", b"(" * 9000)},
        "no npy header",
    ),
    "header_bomb": ({"w.npy": bomb_of_a_header()}, "has no npy header"),
    "version_nine": ({"w.npy": b"\x93NUMPY\x09\x00" + files.npy()[8:]}, "of npy's version .9, 0."),
    "negative_size": ({"w.npy": files.npy(shape=(-2,))}, r"the shape \(-2,\), which no array has"),
    "overflowing_size": ({"w.npy": files.npy(shape=(2**63,))}, "more than can be stored"),
    "overflowing_product": ({"w.npy": files.npy(shape=(2**32, 2**32))}, "more than can be stored"),
    "a_terabyte_claimed": ({"w.npy": files.npy(shape=(2**38,))}, "has 8 bytes, .* needs 1,099,"),
    "bytes_do_not_fit": ({"w.npy": files.npy(shape=(3,))}, "has 8 bytes, .* needs 12"),
    "below_an_array": ({"a.npy": files.npy(), "a/b.npy": files.npy()}, "'a/b' is below an array"),
}


@pytest.mark.parametrize("case", NPZ)
def test_hostile_npz(case, tmp_path):
    members, said = NPZ[case]
    refused(files.raw_zip(tmp_path / "x.npz", members), said)


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = files.raw_zip(
        tmp_path / "x.npz", {"w.npy": b"/etc/passwd"}, external_attr=0o120777 << 16
    )
    refused(path, "'w.npy' is a link")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("w.npy", files.npy())
        archive.writestr("w.npy", files.npy(descr="<f8", shape=(1,)))
    refused(tmp_path / "x.npz", "two of one name, 'w'")


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (8, 0x1, "is encrypted"),  # in the central directory: the flags
        (24, 2**32 - 2, "claims 4,294,967,294 bytes in"),  # the size once unpacked
        (20, 2**32 - 2, "claims .* bytes in 4,294,967,294 of a file of"),  # the size as it is
        (42, 2**31, "must be a zip"),  # where the member begins
    ],
)
def test_a_zip_that_lies_of_itself_is_refused(at, value, said, tmp_path):
    path = files.raw_zip(tmp_path / "x.npz", {"w.npy": files.npy()})
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02") + at
    data[start : start + 4 if at > 8 else start + 2] = struct.pack("<I" if at > 8 else "<H", value)
    path.write_bytes(data)
    refused(path, said)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_says_how_much_memory_to_take_is_refused(method, tmp_path):
    """LZMA's header does, up to four gigabytes; numpy never writes it."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("w.npy", files.npy())
    refused(tmp_path / "x.npz", "'w.npy' is compressed as numpy never does")


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    """Its member is what it claims to be, 256 megabytes in a quarter of one."""
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("w.npy", "w", force_zip64=True) as member,
    ):
        member.write(files.npy(shape=(2**26,), data=b"\0"))
        member.write(b"\0" * ((1 << 20) - 1))
        for _ in range(255):
            member.write(b"\0" * (1 << 20))
    assert (tmp_path / "x.npz").stat().st_size < 1 << 19
    assert checkpoints.read(tmp_path / "x.npz").params["w"].shape == (2**26,)


FOREIGN = {
    "pickle": (pickle.dumps(Bomb()), "is a pickle, which could only be read by running it"),
    "pickle_2": (pickle.dumps(Bomb(), 2), "is a pickle"),
    "npy": (files.npy(), "is one array of numpy's"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "is HDF5"),
    "gzip": (b"\x1f\x8b\x08", "is compressed by gzip"),
    "zstd": (b"\x28\xb5\x2f\xfd\x00", "is compressed by zstd"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    "empty": (b"", "is empty"),
    "text": (b"hello", "begins with b'hello'"),
    "pickle_0": (pickle.dumps(Bomb(), 0), "begins with b'c"),
    "zip_cut_off": (b"PK\x03\x04", "must be a zip"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_told_by_what_they_are(case, tmp_path):
    data, said = FOREIGN[case]
    (tmp_path / "x").write_bytes(data)
    refused(tmp_path / "x", said)


def test_pytorch_is_not_unpickled(tmp_path):
    members = {"archive/data.pkl": pickle.dumps(Bomb()), "archive/version": b"3"}
    refused(files.raw_zip(tmp_path / "model.pt", members), "is no npy file")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is neither a file nor a directory")


@pytest.mark.parametrize("path", ["no/such/place", "a\0b", "x" * 5000, "/dev/zero"])
def test_a_path_of_nothing_is_a_sentence(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(path, "No such file|embedded null|too long|neither a file")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    kinds = ("msgpack", "safetensors", "npz", "npz_compressed")
    made = {}
    for kind in kinds:
        (place / kind).mkdir()
        made[kind] = files.WRITERS[kind](place / kind, files.VARIABLES)
    return made


@pytest.mark.parametrize("kind", ["msgpack", "safetensors", "npz", "npz_compressed"])
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damage_anywhere_is_a_sentence_or_does_not_matter(kind, data, whole, tmp_path):
    """Whatever bytes are changed or cut off, the answer is a tree or a `StructureError`."""
    path = whole[kind]
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        # most of a file is arrays, whose bytes are not looked at
        content[data.draw(st.integers(0, min(600, len(content) - 1)))] = data.draw(
            st.integers(0, 255)
        )
    content = content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    damaged = tmp_path / path.name
    damaged.write_bytes(content)
    try:
        checkpoints.analyze_checkpoint(damaged)
    except StructureError as error:
        assert str(error).isprintable()  # noqa: PT017 - or no error at all
