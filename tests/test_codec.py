"""What crosses a process's connection: every value as it was, and nothing but values."""

import json
import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from playground import codec


def travelled(value):
    """What comes out at the other end of a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: ours.sendall(codec.encode(value)))
        sender.start()
        received = codec.receive(theirs)
        sender.join()
    return received


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


DTYPES = st.one_of(
    st_np.boolean_dtypes(),
    st_np.integer_dtypes(endianness="?"),
    st_np.unsigned_integer_dtypes(endianness="?"),
    st_np.floating_dtypes(endianness="?"),
    st_np.complex_number_dtypes(endianness="?"),
)


@given(st_np.arrays(DTYPES, st_np.array_shapes(min_dims=0, min_side=0, max_dims=4)))
@settings(max_examples=200)
def test_arrays_travel_bit_for_bit(array):
    assert same_bits(travelled({"x": array})["x"], array)
    assert same_bits(travelled((array.T,))[0], np.asarray(array.T))


@pytest.mark.parametrize(
    "array",
    [np.array([object()]), np.array(["text"]), np.zeros(2, "i4,f4"), np.zeros(2, "M8[s]")],
    ids=["objects", "text", "records", "dates"],
)
def test_arrays_of_anything_but_numbers_do_not_travel(array):
    with pytest.raises(TypeError, match="arrays of numbers travel"):
        codec.encode(array)


def frame(header, body=b""):
    header = json.dumps(header).encode()
    return len(header).to_bytes(4, "little") + header + body


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff",
        b"\x04\x00\x00\x00\x80\x04N.",  # a pickle
        frame([]),
        frame({"tree": None}),
        frame({"tree": None, "arrays": [["a0", "|O", [1]]]}, bytes(8)),
        frame({"tree": None, "arrays": [["a0", "<f4", [1 << 40]]]}),
        frame({"tree": None, "arrays": [["a0", "<f4", [-1]]]}),
        frame({"tree": {"$array": "a7"}, "arrays": []}),
        frame({"tree": {"$class": "Popen", "args": "true"}, "arrays": []}),
    ],
)
def test_what_is_no_frame_is_a_value_error(sent):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(sent)
        with pytest.raises(ValueError, match="not a"):
            codec.receive(theirs)


@settings(max_examples=100)
@given(st.data())
def test_a_frame_cut_short_is_the_end_of_the_stream(data):
    sent = codec.encode({"x": np.arange(10), "y": "text"})
    cut = data.draw(st.integers(0, len(sent) - 1))
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(sent[:cut])
        with pytest.raises(EOFError):
            codec.receive(theirs)
