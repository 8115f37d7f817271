"""What every launcher of csrc/ promises, emulated: codes with words for bad arguments, nothing for an empty call, rows 2^31 elements apart."""

import ctypes
import mmap
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from lmmblocks.ops import cuda_gate
from lmmblocks.ops.attention.cuda import BACKWARD, FORWARD
from lmmblocks.ops.attention.decode_cuda_launch import ORDER
from lmmblocks.spec import LmmError

CSRC = Path(__file__).parents[2] / "csrc"
CODES = {name: int(code) for name, code in re.findall(r"(LMM_\w+) = (-\d+)", (CSRC / "common" / "launch.cuh").read_text())}
BFLOAT16 = 2
ROWS, WIDTH = 20, 64
MAP_NORESERVE = 0x4000  # of Linux; the module mmap names it from Python 3.13 on


@dataclass
class Call:
    """Arguments of one launch that works, by name, and what it writes."""

    launcher: str
    arguments: dict
    results: list
    tensors: list = field(default_factory=list)  # kept alive


def _call(launcher, results, tensors, **numbers):
    pointers = {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
    return Call(launcher, {**pointers, **numbers, "device": 0, "stream": 0}, results, list(tensors.values()))


def _rows(*shape, spread, seed=0):
    torch.manual_seed(seed)
    return spread(torch.randn(*shape).to(torch.bfloat16))


def splice_forward(extension, spread):
    table, images = _rows(5, WIDTH, spread=spread), _rows(4, WIDTH, spread=spread, seed=1)
    source = torch.tensor([2, -1, 4, -4, 0, -3], dtype=torch.int32)
    out = spread(torch.zeros(6, WIDTH, dtype=torch.bfloat16))
    return _call(
        "splice_forward", [out], {"table": table, "images": images, "source": source, "out": out},
        table_row=table.stride(0), image=0, image_row=images.stride(0), out_row=out.stride(0), rows=6, vocabulary=5, image_rows=4,
        rows_per_image=4, width=WIDTH, table_type=BFLOAT16, image_type=BFLOAT16, scaled=0, scale=1.0,
    )  # fmt: skip


def splice_backward_rows(extension, spread):
    grad = _rows(6, WIDTH, spread=spread)
    given = {"source": [2, -1, 4, -4, 0, -3], "image_rows": [1, 5, -1, 3], "order": [4, 0, 2]}
    given = {name: torch.tensor(values, dtype=torch.int32) for name, values in given.items()}
    image_grad, bounds = torch.zeros(4, WIDTH, dtype=torch.bfloat16), torch.zeros(6, dtype=torch.int32)
    written = {"image_grad": image_grad, "partial": torch.zeros(1, WIDTH), "bounds": bounds}
    return _call(
        "splice_backward_rows", [image_grad, bounds], {"grad": grad, **given, **written},
        grad_row=grad.stride(0), rows=6, width=WIDTH, images=4, tokens=3, ids=6, grad_type=BFLOAT16, image_type=BFLOAT16,
    )  # fmt: skip


def splice_backward_table(extension, spread):
    grad, table_grad = _rows(6, WIDTH, spread=spread), spread(torch.zeros(5, WIDTH, dtype=torch.bfloat16))
    order, bounds = (torch.tensor(values, dtype=torch.int32) for values in ([4, 0, 2], [0, 1, 1, 2, 2, 3]))
    return _call(
        "splice_backward_table", [table_grad],
        {"grad": grad, "order": order, "partial": torch.zeros(1, WIDTH), "bounds": bounds, "table_grad": table_grad},
        grad_row=grad.stride(0), table_row=table_grad.stride(0), vocabulary=5, width=WIDTH, adding=0, grad_type=BFLOAT16, table_type=BFLOAT16,
        scaled=0, scale=1.0,
    )  # fmt: skip


def _attention(spread, boundaries=(0, ROWS)):
    """q, k and v, the boundaries of their segments, and what all three attention launchers take."""
    tensors = {name: _rows(ROWS, heads, WIDTH, spread=spread, seed=heads) for name, heads in (("q", 2), ("k", 1), ("v", 1))}
    tensors["v"] = spread(tensors["v"].flip(0).contiguous())
    boundaries = torch.as_tensor(boundaries, dtype=torch.int32)
    numbers = {"rows_q": ROWS, "segments": len(boundaries) - 1, "heads": 2, "kv_heads": 1, "head_dim": WIDTH, "dtype": BFLOAT16, "scale": 0.125}
    return tensors, boundaries, numbers


def _strides(**tensors):
    return {f"{name}_{what}": step for name, tensor in tensors.items() for what, step in zip(("row", "head"), tensor.stride()[-3:])}


def attention_forward(extension, spread, boundaries=(0, ROWS)):
    tensors, boundaries, numbers = _attention(spread, boundaries)
    out, lse = torch.zeros(ROWS, 2, WIDTH, dtype=torch.bfloat16), torch.zeros(2, ROWS)
    places = {"out": out, "lse": lse, "cu_q": boundaries, "cu_k": boundaries, "kv_end": None, "tiles": None}
    return _call(
        "attention_forward", [out, lse], {**tensors, **places}, **_strides(**tensors), **numbers, tile_count=0, longest_q=ROWS, even=0, mask=1
    )


def attention_backward(extension, spread, boundaries=(0, ROWS)):
    tensors, boundaries, numbers = _attention(spread, boundaries)
    forward = attention_forward(extension, lambda tensor: tensor, boundaries)
    assert extension.attention_forward(**forward.arguments) == 0
    out, lse = forward.results
    tensors["grad"] = _rows(ROWS, 2, WIDTH, spread=spread, seed=5)
    gradients = {f"d{name}": torch.zeros(tensors[name].shape, dtype=torch.bfloat16) for name in "qkv"}
    space = torch.zeros(extension.attention_backward_workspace(ROWS, len(boundaries) - 1, 2, WIDTH), dtype=torch.uint8)
    places = {"out": out, "lse": lse, "grad_lse": None, "cu_q": boundaries, "cu_k": boundaries, "kv_end": None, "workspace": space}
    return _call(
        "attention_backward", list(gradients.values()), {**tensors, **places, **gradients}, **_strides(**tensors), **numbers,
        grad_lse_row=0, grad_lse_head=0, workspace_bytes=space.numel(), rows_k=ROWS, mask=1,
    )  # fmt: skip


def _decode(q, keys, places, **numbers):
    out, lse = torch.zeros(q.shape, dtype=torch.bfloat16), torch.zeros(2, q.shape[0])
    unused = dict.fromkeys(("cu_q", "cu_k", "page_table", "lengths", "partial", "partial_log", "ranges"))
    return _call(
        "attention_decode", [out, lse], {"q": q, **keys, "out": out, "lse": lse, **unused, **places},
        **_strides(q=q, **keys), longest_q=q.shape[0], parts=numbers["segments"], goal=1, least_steps=16, most_parts=1,
        causal=1, window=0, softcap=0.0, **numbers,
    )  # fmt: skip


def attention_decode(extension, spread, boundaries=(0, ROWS)):
    tensors, boundaries, numbers = _attention(spread, boundaries)
    places = {"cu_q": boundaries, "cu_k": boundaries}
    return _decode(tensors.pop("q"), tensors, places, k_page=0, v_page=0, table_row=0, page_rows=0, **numbers)


def attention_decode_in_pages(extension, spread):
    _, _, numbers = _attention(lambda tensor: tensor)
    q, pages = _rows(3, 2, WIDTH, spread=spread), [_rows(4, 16, 1, WIDTH, spread=spread, seed=seed) for seed in (1, 2)]
    places = {"page_table": torch.tensor([[3, 1]], dtype=torch.int32), "lengths": torch.tensor([ROWS], dtype=torch.int32)}
    steps = {"k_page": pages[0].stride(0), "v_page": pages[1].stride(0), "table_row": 2, "page_rows": 16}
    return _decode(q, dict(zip("kv", pages)), places, **steps, **numbers | {"rows_q": 3})


CALLS = [
    *(splice_forward, splice_backward_rows, splice_backward_table),
    *(attention_forward, attention_backward, attention_decode, attention_decode_in_pages),
]


def _launched(extension, call, **changes):
    return getattr(extension, call.launcher)(**call.arguments | changes)


@pytest.fixture(scope="module")
def scattered():
    """`scattered(tensor)`: the same values; the last row starts more than 2^31 elements after the first, which takes addresses but no memory.

    With `row=`, that row does.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    regions = []

    def copy(tensor, row=-1):
        stride = (2**31 // (row % tensor.shape[0]) // WIDTH + 1) * WIDTH
        size = ((tensor.shape[0] - 1) * stride + tensor[0].numel()) * tensor.element_size()
        region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        regions.append(region)
        flat = torch.frombuffer(region, dtype=tensor.dtype, count=size // tensor.element_size())
        return flat.as_strided(tensor.shape, (stride, *tensor.stride()[1:])).copy_(tensor)

    return copy


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.__name__)
def test_rows_may_lie_more_than_2_31_elements_apart(cuda_emulation, scattered, case):
    near, far = case(cuda_emulation, lambda tensor: tensor), case(cuda_emulation, scattered)
    assert _launched(cuda_emulation, near) == 0 and _launched(cuda_emulation, far) == 0
    for expected, found in zip(near.results, far.results):
        assert expected.abs().sum() > 0
        assert torch.equal(found, expected)


@pytest.mark.parametrize("case", [attention_forward, attention_backward, attention_decode], ids=lambda case: case.__name__)
def test_a_segment_may_begin_more_than_2_31_elements_behind_the_first(cuda_emulation, scattered, case):
    near, far = (case(cuda_emulation, spread, (0, ROWS - 1, ROWS)) for spread in (lambda tensor: tensor, scattered))
    assert _launched(cuda_emulation, near) == 0 and _launched(cuda_emulation, far) == 0
    for expected, found in zip(near.results, far.results):
        assert expected[-1].abs().sum() > 0
        assert torch.equal(found, expected)


def test_an_output_beyond_2_31_elements_is_written_where_it_belongs(cuda_emulation):
    """The last tile of 17 million rows, which are all the same one (a stride of 0): the others take addresses only."""
    heads, rows = 2, 2**31 // (2 * WIDTH) + 200
    torch.manual_seed(7)
    q, keys, values = (torch.randn(count, heads, WIDTH).to(torch.bfloat16) for count in (1, ROWS, ROWS))

    def call(rows, out, lse):
        places = {"cu_q": [0, rows], "cu_k": [0, ROWS], "tiles": [0, (rows - 1) // 128]}
        places = {name: torch.tensor(numbers, dtype=torch.int32) for name, numbers in places.items()}
        tensors = {"q": q, "k": keys, "v": values, "out": out, "lse": lse, **places}
        strides = _strides(k=keys, v=values) | {"q_row": 0, "q_head": WIDTH}
        return _call(
            "attention_forward", [], tensors, **strides, kv_end=0, tile_count=1, longest_q=rows, even=0, mask=0, rows_q=rows, segments=1,
            heads=heads, kv_heads=heads, head_dim=WIDTH, dtype=BFLOAT16, scale=0.125,
        )  # fmt: skip

    near, near_lse = torch.zeros(1, heads, WIDTH, dtype=torch.bfloat16), torch.zeros(heads, 1)
    assert _launched(cuda_emulation, call(1, near, near_lse)) == 0 and near.abs().sum() > 0
    region = mmap.mmap(-1, rows * heads * WIDTH * 2, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    far = torch.frombuffer(region, dtype=torch.bfloat16, count=rows * heads * WIDTH).view(rows, heads, WIDTH)
    far_lse = torch.frombuffer(mmap.mmap(-1, rows * heads * 4), dtype=torch.float32, count=rows * heads).view(heads, rows)
    assert _launched(cuda_emulation, call(rows, far, far_lse)) == 0
    written = (rows - 1) % 128 + 1
    assert far.shape[0] * heads * WIDTH > 2**31
    assert torch.equal(far[-written:], near.expand(written, heads, WIDTH)) and not far[-written - 1].any() and not far[:300].any()
    assert torch.equal(far_lse[:, -written:], near_lse.expand(heads, written))


FIRST_HEADS = """
#include "attention/backward.cuh"
#include "attention/backward_prepare.cuh"
#include "common/launch.cuh"

// The backward of some heads of bf16 with 64 columns, each with keys of its own, by kernels that are told of `args.heads` heads.
extern "C" LMM_EXPORT int first_heads(void* const* tensors, int rows, int segments, int heads, int all_heads, float scale) {
    using namespace lmm;
    using Tile = BackwardTile<64>;
    BackwardCall call{{}, {}, slot_count(rows, segments, Tile::kRows), slot_count(rows, segments, Tile::kKeys)};
    LmmAttentionBackwardArgs& args = call.args;
    args.q = tensors[0], args.k = tensors[1], args.v = tensors[2], args.out = tensors[3], args.grad = tensors[4];
    args.lse = static_cast<const float*>(tensors[5]), args.dq = tensors[6], args.dk = tensors[7], args.dv = tensors[8];
    args.cu_q = args.cu_k = static_cast<const int32_t*>(tensors[9]), args.kv_end = static_cast<const int32_t*>(tensors[10]);
    args.q_row = args.k_row = args.v_row = args.grad_row = heads * 64, args.q_head = args.k_head = args.v_head = args.grad_head = 64;
    args.rows_q = args.rows_k = rows, args.segments = segments, args.heads = args.kv_heads = all_heads, args.head_dim = 64;
    args.mask = kKvEnd, args.dtype = LMM_BFLOAT16, args.scale = scale;
    std::vector<unsigned char> space(call.work.lay_out<Tile>(nullptr, rows, segments, heads) + 16);
    call.work.lay_out<Tile>(space.data() + 16 - reinterpret_cast<uintptr_t>(space.data()) % 16, rows, segments, heads);
    cudaError_t error;
    LMM_LAUNCH(error, (attention_backward_prepare<__nv_bfloat16, Tile>), dim3(call.slots, heads), kPrepareThreads, 0, nullptr, call);
    if (error != cudaSuccess) return error;
    unsigned tickets = call.key_slots * heads;
    LMM_LAUNCH(error, (attention_backward<__nv_bfloat16, Tile>), tickets, Tile::kThreads, Tile::kSharedBytes, nullptr, call);
    return error;
}
extern "C" LMM_EXPORT const char* fault() { return simt::last_fault().c_str(); }
"""


def test_gradients_beyond_2_31_elements_are_written_where_they_belong(host_library, scattered):
    """What is contiguous lies 2^31 elements apart where there are that many heads. Only the first eight run: the others take addresses only."""
    library, heads = host_library(FIRST_HEADS), 8  # TicketOrder::kBunch
    library.fault.restype = ctypes.c_char_p
    q, k, v, out, grad = (_rows(ROWS, heads, WIDTH, spread=torch.clone, seed=seed) for seed in range(5))
    lse = torch.randn(heads, ROWS) + 9
    ends = torch.arange(1, ROWS + 1, dtype=torch.int32)
    ends[-1] = 0  # dq of a segment that sees nothing is written by the first kernel
    boundaries = torch.tensor([0, ROWS - 3, ROWS - 1, ROWS], dtype=torch.int32)

    def gradients(spread):
        found = [spread(torch.full_like(x, float("nan"))) for x in (q, k, v)]
        tensors = [q, k, v, spread(out), grad, lse, *found, boundaries, ends]
        pointers = (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))
        all_heads = found[0].stride(0) // WIDTH
        code = library.first_heads(pointers, ROWS, len(boundaries) - 1, heads, all_heads, ctypes.c_float(0.125))
        assert code == 0, library.fault().decode()
        return found

    near, far = gradients(torch.clone), gradients(lambda tensor: scattered(tensor, row=ROWS - 3))
    for expected, found in zip(near, far):
        assert found[ROWS - 3].data_ptr() - found.data_ptr() > 2 * 2**31
        assert expected[-3:].isfinite().all() and torch.equal(found, expected)
    assert near[0][-2].any() and not near[0][-1].any()


REFUSED = [
    (splice_forward, {"rows": -1}, "LMM_BAD_SIZE"),
    (splice_forward, {"width": -1}, "LMM_BAD_SIZE"),
    (splice_forward, {"rows_per_image": 0}, "LMM_BAD_SIZE"),
    (splice_forward, {"rows": 2**31 - 1, "width": 2**31 - 1}, "LMM_BAD_SIZE"),
    (splice_forward, {"source": 0}, "LMM_NULL_POINTER"),
    (splice_forward, {"out": 0}, "LMM_NULL_POINTER"),
    (splice_forward, {"table": 0}, "LMM_NULL_POINTER"),
    (splice_forward, {"images": 0}, "LMM_NULL_POINTER"),
    (splice_forward, {"table_type": 3}, "LMM_BAD_DTYPE"),
    (splice_forward, {"image_type": -1}, "LMM_BAD_DTYPE"),
    (splice_backward_rows, {"tokens": -1}, "LMM_BAD_SIZE"),
    (splice_backward_rows, {"grad": 0}, "LMM_NULL_POINTER"),
    (splice_backward_rows, {"image_grad": 0}, "LMM_NULL_POINTER"),
    (splice_backward_rows, {"bounds": 0}, "LMM_NULL_POINTER"),
    (splice_backward_rows, {"order": 0}, "LMM_NULL_POINTER"),
    (splice_backward_rows, {"grad_type": 3}, "LMM_BAD_DTYPE"),
    (splice_backward_table, {"vocabulary": -1}, "LMM_BAD_SIZE"),
    (splice_backward_table, {"bounds": 0}, "LMM_NULL_POINTER"),
    (splice_backward_table, {"table_grad": 0}, "LMM_NULL_POINTER"),
    (splice_backward_table, {"table_type": 1}, "LMM_BAD_DTYPE"),
    (splice_backward_table, {"adding": 1}, "LMM_BAD_DTYPE"),
    *((case, {"dtype": 0}, "LMM_BAD_DTYPE") for case in CALLS[3:]),
    *((case, {"head_dim": 96}, "LMM_BAD_HEAD_DIM") for case in CALLS[3:]),
    *((case, {"q_row": 130}, "LMM_BAD_STRIDE") for case in CALLS[3:]),
    *((case, {"v_head": 4}, "LMM_BAD_STRIDE") for case in CALLS[3:]),
    *((case, {"heads": 3, "kv_heads": 2}, "LMM_BAD_HEADS") for case in CALLS[3:]),
    *((case, {"kv_heads": 0}, "LMM_BAD_HEADS") for case in CALLS[3:]),
    *((case, {"rows_q": -1}, "LMM_BAD_SIZE") for case in CALLS[3:]),
    *((case, {"segments": -1}, "LMM_BAD_SIZE") for case in CALLS[3:]),
    *((case, {"scale": scale}, "LMM_UNSUPPORTED") for case in CALLS[3:] for scale in (0.0, -1.0, float("nan"))),
    *((case, {"mask": mask}, "LMM_UNSUPPORTED") for case in CALLS[3:5] for mask in (-1, 3)),
    *((case, {"mask": 2}, "LMM_NULL_POINTER") for case in CALLS[3:5]),
    *((case, {"heads": 65536}, "LMM_BAD_SIZE") for case in CALLS[3:]),
    *((case, {pointer: 0}, "LMM_NULL_POINTER") for case in CALLS[3:6] for pointer in ("q", "out", "lse", "cu_k")),
    *((attention_backward, {pointer: 0}, "LMM_NULL_POINTER") for pointer in ("k", "v", "grad", "dq", "dk", "dv", "cu_q")),
    (attention_backward, {"workspace_bytes": 255}, "LMM_SMALL_WORKSPACE"),
    (attention_backward, {"rows_k": -1}, "LMM_BAD_SIZE"),
    (attention_decode, {"longest_q": 0}, "LMM_BAD_SIZE"),
    (attention_decode, {"window": -1}, "LMM_BAD_SIZE"),
    (attention_decode, {"parts": 0}, "LMM_SMALL_WORKSPACE"),
    (attention_decode, {"most_parts": 2}, "LMM_SMALL_WORKSPACE"),
    (attention_decode_in_pages, {"page_rows": 24}, "LMM_BAD_PAGE_SIZE"),
    (attention_decode_in_pages, {"lengths": 0}, "LMM_NULL_POINTER"),
]


@pytest.mark.parametrize("case, changes, code", REFUSED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_bad_argument_has_its_code(cuda_emulation, case, changes, code):
    assert _launched(cuda_emulation, case(cuda_emulation, lambda tensor: tensor), **changes) == CODES[code]


@pytest.mark.parametrize("case", CALLS[3:], ids=lambda case: case.__name__)
@pytest.mark.parametrize("pointer", ["q", "k", "v", "out"])
def test_a_pointer_between_two_16_byte_places_is_refused(cuda_emulation, case, pointer):
    call = case(cuda_emulation, lambda tensor: tensor)
    assert _launched(cuda_emulation, call, **{pointer: call.arguments[pointer] + 8}) == CODES["LMM_MISALIGNED"]


@pytest.fixture
def expect(emulated_extension):
    """`expect(device, stream)`: launches elsewhere are refused; gives a function that tells which device is current."""
    library = ctypes.CDLL(str(emulated_extension))
    library.lmm_simt_expect.argtypes = [ctypes.c_int, ctypes.c_size_t]

    def expecting(device, stream):
        library.lmm_simt_expect(device, stream)
        return library.lmm_simt_device

    yield expecting
    library.lmm_simt_expect_nothing()


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.__name__)
def test_every_launch_is_on_the_stream_and_device_of_the_call(cuda_emulation, case, expect):
    call = case(cuda_emulation, lambda tensor: tensor)
    current_device = expect(1, 0x5EED)
    assert _launched(cuda_emulation, call, device=1, stream=0x5EED) == 0
    assert current_device() == 0, "the caller's device is current again"
    for elsewhere in ({"device": 0, "stream": 0x5EED}, {"device": 1, "stream": 0}):
        code = _launched(cuda_emulation, call, **elsewhere)
        assert "expected stream 0x5eed of device 1" in cuda_emulation.error_message(code)


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.__name__)
def test_a_device_that_is_not_there_is_an_error(cuda_emulation, case):
    assert _launched(cuda_emulation, case(cuda_emulation, lambda tensor: tensor), device=7) == 101


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.__name__)
def test_a_call_without_rows_does_nothing(cuda_emulation, case):
    call = case(cuda_emulation, lambda tensor: tensor)
    for name in ("rows", "images", "ids", "tokens", "vocabulary", "rows_q", "rows_k", "segments"):
        if name in call.arguments:
            call.arguments[name] = 0
    assert _launched(cuda_emulation, call) == 0
    assert all(result.abs().sum() == 0 for result in call.results)


@pytest.mark.parametrize("case", CALLS[3:], ids=lambda case: case.__name__)
def test_a_call_without_heads_does_nothing(cuda_emulation, case):
    call = case(cuda_emulation, lambda tensor: tensor)
    empty = dict.fromkeys(("q", "k", "v", "out", "lse", "grad", "dq", "dk", "dv", "heads", "kv_heads"), 0)  # an empty tensor lies at 0
    assert _launched(cuda_emulation, call, **{name: value for name, value in empty.items() if name in call.arguments}) == 0


def test_every_code_says_what_was_found_and_what_to_change(cuda_emulation):
    messages = {name: cuda_emulation.error_message(code) for name, code in CODES.items()}
    assert len(set(messages.values())) == len(messages) >= 10
    for name, message in messages.items():
        assert re.search(r"\bfound\b.*; (cast|use|copy|split|pass|allocate) \w+", message), (name, message)
    assert cuda_emulation.error_message(0) == "no error"
    assert "not in launch.cuh" in cuda_emulation.error_message(min(CODES.values()) - 1)


def test_missing_unknown_and_unfitting_arguments_are_type_errors(cuda_emulation):
    call = splice_forward(cuda_emulation, lambda tensor: tensor)
    for changes in ({"rows": 2**31}, {"rows": 1.5}, {"rows": None}, {"row": 1}):
        with pytest.raises(TypeError, match="splice_forward"):
            _launched(cuda_emulation, call, **changes)
    del call.arguments["rows"]
    with pytest.raises(TypeError, match="splice_forward"):
        _launched(cuda_emulation, call)


@pytest.mark.parametrize(("name", "order"), [("attention_forward", FORWARD), ("attention_backward", BACKWARD), ("attention_decode", ORDER)])
def test_arguments_by_position_have_the_order_of_the_extension_or_are_refused(cuda_emulation, name, order):
    cpu = torch.device("cpu")
    assert cuda_gate.launcher(name, cpu, order) is not None
    first, second, *rest = order.split()
    with pytest.raises(LmmError, match=f"_C.{name} takes {first} {second} .*built from other sources: install lmmblocks again"):
        cuda_gate.launcher(name, cpu, " ".join([second, first, *rest]))
