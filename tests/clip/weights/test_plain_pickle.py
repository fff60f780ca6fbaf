import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from clipself_d2.clip.weights.plain_pickle import (
    ARRAYS,
    PlainDtype,
    _PlainUnpickler,
    load_plain_pickle,
    plain_scalar,
    read_plain_pickle,
)

shared = np.arange(3.0)
CONTENT = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.zeros((0, 4), np.float32),
    "number without axes": np.array(2.5, np.float16),
    "truths": np.array([True, False]),
    "other byte order": np.arange(3, dtype=">f4"),
    "words": np.array(["ab", "c"]),
    "bytes": np.array([b"ab", b"c"]),
    "twice": [shared, shared],
    "scalar": np.float64(3.5),
    "count": np.int64(7),
    "ordered": OrderedDict(a=1),
    "raw": b"\xff",
    "no bytes": b"",
    "plain": [1, 2.5, None, True, "text", (3,)],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("key", CONTENT)
def test_arrays_and_plain_data_come_back(key, protocol):
    expected = CONTENT[key]
    stream = io.BytesIO(pickle.dumps(expected, protocol))
    found = load_plain_pickle(stream)
    if not isinstance(expected, np.ndarray):
        assert repr(found) == repr(expected).replace("np.float64(3.5)", "3.5").replace(
            "np.int64(7)", "7"
        )
        return
    assert found.dtype == expected.dtype.newbyteorder("=")
    assert found.flags.writeable
    assert found.flags.f_contiguous == expected.flags.f_contiguous
    np.testing.assert_array_equal(found, expected)


def test_array_named_twice_is_one_array():
    first, second = load_plain_pickle(io.BytesIO(pickle.dumps([shared, shared], 2)))
    assert first is second


def test_files_of_python_2_hold_arrays_as_text(tmp_path):
    """As Detectron2's model zoo, whose bytes are opcodes of text."""
    array = np.array([1.5, -2.0], np.float32)
    # In parts: the call, its arguments, the state with the type and the state of the type.
    parts = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR",
        b"(K\x01(K\x02tcnumpy\ndtype\n(U\x02f4K\x00K\x01tR",
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08",
        array.tobytes() + b"tb.",
    )
    content = b"".join(parts)
    np.testing.assert_array_equal(pickle.loads(content, encoding="latin1"), array)
    (tmp_path / "zoo.pkl").write_bytes(content)
    np.testing.assert_array_equal(read_plain_pickle(tmp_path / "zoo.pkl"), array)


class Planted:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_call_is_refused_by_name_and_not_made(tmp_path, protocol):
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps([Planted(os.mkdir, (str(tmp_path / "ran"),))], protocol))
    with pytest.raises(ValueError, match=r"a\.pkl cannot be read.*it asks for posix\.mkdir"):
        read_plain_pickle(file)
    assert not (tmp_path / "ran").exists()


def test_arrays_are_refused_where_only_plain_data_is_allowed(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(np.ones(2), 2))
    with pytest.raises(ValueError, match="asks for numpy"):
        read_plain_pickle(tmp_path / "a.pkl", {})
    assert read_plain_pickle(tmp_path / "a.pkl", ARRAYS).tolist() == [1, 1]


@pytest.mark.parametrize("code", ["O8", "V8", "f4,f4", "M8", "f3", 5, "S", "O"])
def test_types_that_hold_more_than_numbers_are_refused(code):
    with pytest.raises(pickle.UnpicklingError, match="asks for an array of"):
        PlainDtype(code)


@pytest.mark.parametrize(
    "state",
    [
        (3, "<", None, ("a",), {"a": (np.dtype("f4"), 0)}, 4, 4, 0),
        (3, "<", None, None, None, 400, 4, 0),
        (3, "x", None, None, None, -1, -1, 0),
    ],
)
def test_forged_type_is_refused(state):
    with pytest.raises(pickle.UnpicklingError):
        PlainDtype("f4").__setstate__(state)


@pytest.mark.parametrize(
    "state",
    [
        (1, (1 << 40,), PlainDtype("f4"), False, b"1234"),
        (1, (-1,), PlainDtype("f4"), False, b"1234"),
        (1, (1,), np.dtype("O"), False, [1]),
        (1, (1,), PlainDtype("f4"), False, [1]),
        (1, [1], PlainDtype("f4"), False, b"1234"),
    ],
)
def test_forged_array_is_refused(state):
    """Numpy is never given what is forged."""
    reader = _PlainUnpickler(io.BytesIO(), ARRAYS)
    reader.stack = [np.empty(0, np.uint8), state]
    with pytest.raises(pickle.UnpicklingError):
        reader._build()


def test_long_bytearray_does_not_take_memory():
    """Protocol 5 tells a length before the bytes; a few bytes could ask for all memory."""
    forged = b"\x80\x05\x96" + (1 << 45).to_bytes(8, "little") + b"abc."
    with pytest.raises((EOFError, pickle.UnpicklingError, MemoryError)):
        load_plain_pickle(io.BytesIO(forged))


def test_scalar_of_other_length_is_refused():
    assert plain_scalar(PlainDtype("i4"), b"\x05\0\0\0") == 5
    with pytest.raises(pickle.UnpicklingError, match="has 2 bytes"):
        plain_scalar(PlainDtype("i4"), b"\x05\0")
