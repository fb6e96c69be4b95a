"""What a message may hold comes back equal in type and value; what it may not is named; torn heads are
refused."""

from __future__ import annotations

import collections
import enum
import json
import math
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from pycomm import InvalidArgument, PycommError
from pycomm.content import decode, encode

pytestmark = pytest.mark.timeout(60)
few = hypothesis.settings(max_examples=150, deadline=None)

TORCH_DTYPES = [
    *(
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.bool,
        torch.complex64,
        torch.complex128,
    ),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
]


def carried(content: Any) -> Any:
    """Through the head and copies of the pieces, as over a wire."""
    head, pieces = encode(content)
    assert isinstance(head, bytes)
    return decode(head, [np.frombuffer(bytearray(piece), np.uint8) for piece in pieces])


def same(a: Any, b: Any) -> bool:
    """Equal in type and value, NaN being itself."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float):
        return (a != a and b != b) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, torch.Tensor):
        bits = [x.resolve_conj().contiguous().view(-1).view(torch.uint8).tolist() for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and bits[0] == bits[1]
    return bool(a == b)


def number_dtypes() -> st.SearchStrategy[np.dtype[Any]]:
    orders = st.sampled_from(["<", ">"])
    return st.one_of(
        hnp.boolean_dtypes(),
        orders.flatmap(lambda order: hnp.integer_dtypes(endianness=order)),
        orders.flatmap(lambda order: hnp.unsigned_integer_dtypes(endianness=order)),
        orders.flatmap(lambda order: hnp.floating_dtypes(endianness=order)),
        orders.flatmap(lambda order: hnp.complex_number_dtypes(endianness=order)),
    )


def arrays() -> st.SearchStrategy[np.ndarray[Any, Any]]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    plain = hnp.arrays(number_dtypes(), shapes)
    return st.one_of(plain, plain.map(lambda x: x.T), plain.map(lambda x: x[..., ::-1] if x.ndim else x))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    x = torch.arange(math.prod(shape)).reshape(shape).to(draw(st.sampled_from(TORCH_DTYPES)))
    x = x.transpose(0, -1) if draw(st.booleans()) and x.dim() else x
    return x.conj() if x.is_complex() and draw(st.booleans()) else x


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=())),
    st.binary(max_size=20),
    arrays(),
    tensors(),
)
contents = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
    ),
    max_leaves=8,
)


@few
@hypothesis.given(content=contents)
def test_content_comes_back_equal_in_type_and_value(content: Any) -> None:
    assert same(carried(content), content)


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)], ids=str)
def test_every_torch_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    assert same(carried({"x": x}), {"x": x})


@pytest.mark.parametrize("code", "?bBhHiIlLqQefdgFDG")
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)], ids=str)
def test_every_numpy_dtype_and_shape(code: str, shape: tuple[int, ...]) -> None:
    x = np.arange(math.prod(shape)).reshape(shape).astype(code)
    for y in (x, x.astype(x.dtype.newbyteorder())):
        assert same(carried([y]), [y])


def test_numbers_that_json_has_no_word_for() -> None:
    odd = [math.inf, -math.inf, math.nan, -0.0, 5e-324, 2**63, -(2**63), -(2**63) - 1, 10**5000, -(10**5000)]
    assert same(carried(odd), odd)


def test_what_looks_like_a_reference_is_content() -> None:
    content = {"bytes": 0, "dict": {"tuple": [1]}, "numpy": [0, "<f4", [1]], "": {}}
    assert same(carried(content), content)


def test_contiguous_arrays_are_not_copied() -> None:
    x, t = np.arange(6.0).reshape(2, 3), torch.arange(4)
    _, pieces = encode([x, t])
    assert np.shares_memory(pieces[0], x) and pieces[1].ctypes.data == t.data_ptr()
    y, u = decode(*encode([x, t]))
    assert np.shares_memory(y, x) and u.data_ptr() == t.data_ptr()


# ---- refused


class Color(enum.IntEnum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({1}, r"content is a set; expected dict \(str keys\), list"),
        ({"grads": [0, 1, 2, {3}]}, r"content\['grads'\]\[3\] is a set"),
        (({"a": (None, object())},), r"content\[0\]\['a'\]\[1\] is a object"),
        ([{1: 2}], r"content\[0\] has the key 1, a int; expected keys of type str"),
        (np.float32(1), "content is a numpy.float32, which would not arrive as one"),
        (np.float64(1), "content is a numpy.float64, which would not arrive as one"),
        (Color.RED, r"content is a .*Color, which would not arrive as one"),
        (Point(1, 2), r"content is a .*Point, which would not"),
        (collections.OrderedDict(), "collections.OrderedDict, which would not"),
        (np.array(["a"]), r"content is an array of dtype <U1; expected numbers"),
        (np.array([None]), "array of dtype object"),
        (np.zeros(2, "M8[s]"), "array of dtype datetime64"),
        (np.zeros(2, [("a", "f4")]), "array of dtype"),
        (np.ma.masked_array([1, 2]), "numpy.ma.*which would not"),
        (bytearray(b"a"), "content is a bytearray"),
        (1j, "content is a complex"),
        (torch.ones(2, requires_grad=True), r"requires grad.*pass \.detach\(\)"),
        (torch.nn.Parameter(torch.ones(2)), r"Parameter; pass \.detach\(\)"),
        (torch.ones(2, device="meta"), "tensor on meta; expected a dense one on cpu"),
        (torch.ones(2, 2).to_sparse(), "sparse_coo tensor"),
        (torch.ones(2).to(torch.float8_e5m2), "dtype torch.float8_e5m2; expected one of bfloat16"),
        (len, "content is a builtin_function_or_method"),
    ],
    ids=str,
)
def test_refused_naming_the_place(content: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        encode(content)


def test_content_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidArgument, match="contains itself"):
        encode(loop)


# ---- torn and hostile heads

PIECES = [np.zeros(12, np.uint8), np.zeros(3, np.uint8)]
GOOD = [{"numpy": [0, "<f4", [3]]}, {"bytes": 1}]


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"numpy": [0, "<f4", [3]]}, "names 1 of 2 pieces"),
        ([{"bytes": 0}, {"bytes": 0}], "piece 0 where 1 of 2 comes next"),
        ([*GOOD, {"bytes": 2}], "piece 2 where 2 of 2"),
        ([{"bytes": -1}], "piece -1"),
        ([{"bytes": True}], "piece True"),
        ([{"bytes": "0"}], "piece 0"),
        ([{"numpy": [0, "<f4", [4]]}], "shape .4. in 12 bytes"),
        ([{"numpy": [0, "<f4", [-1]]}], "shape .-1."),
        ([{"numpy": [0, "<f4", [-3, -1]]}], "shape"),
        ([{"numpy": [0, "<f4", [2**61, 8, 3]]}], "shape"),
        ([{"numpy": [0, "<f4", [3] + [1] * 80]}], "shape"),
        ([{"numpy": [0, "<f4", [3.0]]}], "shape"),
        ([{"numpy": [0, "<f4", 3]}], "int where a list belongs"),
        ([{"numpy": [0, "|O", [3]]}], "unknown dtype '|O'"),
        ([{"numpy": [0, "O", [3]]}], "unknown dtype"),
        ([{"numpy": [0, ["<f4"], [3]]}], "unknown dtype"),
        ([{"numpy": [0, "<f4"]}], "values to unpack"),
        ([{"torch": [0, "load", [3]]}], "unknown dtype 'load'"),
        ([{"torch": [0, "float32", [5]]}], "shape"),
        ([{"pickle": "gASV"}], "unknown kind 'pickle'"),
        ([{}], "0 keys"),
        ([{"bytes": 0, "tuple": []}], "2 keys"),
        ([{"tuple": {}}], "dict where a list belongs"),
        ([{"dict": []}], "list where a dict belongs"),
        ([{"int": 5}], "int where a str belongs"),
        ([{"int": "five"}], "invalid literal"),
    ],
    ids=str,
)
def test_a_hostile_head_is_refused(node: Any, words: str) -> None:
    with pytest.raises(PycommError, match=words):
        decode(json.dumps(node).encode(), PIECES)


def test_nesting_beyond_measure_is_refused() -> None:
    for head in (b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"tuple":[' * 50_000):
        with pytest.raises(PycommError):
            decode(head, [])


@few
@hypothesis.given(head=st.binary(max_size=60))
def test_random_bytes_never_do_anything_but_raise(head: bytes) -> None:
    try:
        content = decode(head, [])
    except PycommError:
        return
    assert same(content, json.loads(head))  # JSON of plain values


@few
@hypothesis.given(content=contents, data=st.data())
def test_a_damaged_head_raises_or_still_makes_content(content: Any, data: st.DataObject) -> None:
    head, pieces = encode(content)
    memory = [np.frombuffer(bytearray(piece), np.uint8) for piece in pieces]
    broken = bytearray(head)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(
            st.sampled_from(b'0123456789[]{}",:-<f')
        )
    broken = broken[: data.draw(st.integers(len(broken) - 3, len(broken)))]
    try:
        arrived = decode(bytes(broken), memory)
    except PycommError:
        return
    encode(arrived)
