"""What the compiler makes of the PTX in csrc/common/ptx.cuh, one small kernel for each kind: opcodes and the order of operands, for A100 and H100.

The emulator has instructions of its own in place of that text, so a wrong word in it is seen here, or on a GPU by `python -m benchmarks.gpu.ptx`.
"""

import re
import shutil
import subprocess

import pytest

from benchmarks.gpu.ptx import CSRC, SOURCE
from benchmarks.resources.cuda.toolchain import MissingTool, toolchain

INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+((?:@!?U?P\w+\s+)?[A-Z][^;]*);", re.MULTILINE)


@pytest.fixture(scope="module")
def tools():
    try:
        return toolchain()
    except MissingTool as missing:
        pytest.skip(str(missing))


def _code(tools, arch, folder, headers=CSRC):
    """The instructions of each kernel by its name, template arguments included, spaces as one."""
    target = folder / "ptx.cubin"
    subprocess.run([tools.nvcc, "-std=c++17", "-O3", "-cubin", "-I", headers, f"-arch=sm_{arch}", SOURCE, "-o", target], check=True)
    text = subprocess.run([tools.cuobjdump, "-sass", target], check=True, capture_output=True, text=True).stdout
    found = {}
    for part in text.split("Function : ")[1:]:
        name = re.search(r"\d(ptx_\w+)", part.partition("\n")[0])[1]
        found[name] = [" ".join(line.split()) for line in INSTRUCTION.findall(part)]
    return found


@pytest.fixture(scope="module", params=[80, 90])
def code(request, tools, tmp_path_factory):
    return request.param, _code(tools, request.param, tmp_path_factory.mktemp("ptx"))


def _lines(code, kernel, pattern):
    """The instructions of one kernel that match."""
    (name,) = [name for name in code if re.match(kernel, name)]
    return [line for line in code[name] if re.search(pattern, line)]


def _without_descriptor(lines):
    return [re.sub(r"desc\[\w+\]", "", line) for line in lines]


def _places_and_registers(stores):
    """The offset and the first register of each store."""
    for line in stores:
        place = re.search(r"\+(0x\w+)\]", line)
        yield int(place[1], 16) if place else 0, int(re.search(r"\], R(\d+)", line)[1])


def _check_stream(code):
    """Loads past L1, one of them predicated and not branched around; what is stored are the registers as they were loaded."""
    loads = _lines(code, "ptx_stream", r"LDG")
    assert len(loads) == 2 and all("LDG.E.NA.128.CONSTANT" in line for line in loads)
    (guard,) = [re.match(r"@(!?)(P\d)", line).groups() for line in loads if line.startswith("@")]
    compared = [re.match(r"ISETP\.(GE|LT)\S* (P\d), PT, R\d+", line).groups() for line in _lines(code, "ptx_stream", "^ISETP")]
    assert compared == [("GE" if guard[0] else "LT", guard[1])], "loaded where the thread is below the number of valid ones"
    stores = _lines(code, "ptx_stream", "^STG")
    assert [line.split()[0] for line in stores] == ["STG.E.EF.128"] * 2
    every, loaded = _lines(code, "ptx_stream", ""), {int(re.search(r"CONSTANT R(\d+)", line)[1]): line for line in loads}
    assert {register for _, register in _places_and_registers(stores)} == set(loaded)
    for first, line in loaded.items():
        written = [re.match(r"[A-Z][\w.]* R(\d+)", later) for later in every[every.index(line) + 1 :]]
        assert not {int(found[1]) for found in written if found} & set(range(first, first + 4)), "nothing is moved there in between"


def _check_pairs(code):
    """Of two numbers that become one register, the first is the lower half, which the instruction names last."""
    for kernel in ("ptx_numbersI6__half", "ptx_numbersI13__nv_bfloat16"):
        own, *_ = addresses = [re.search(r"\[(R\d+)\.64", line)[1] for line in _lines(code, kernel, "^LDG")]
        registers = [re.match(r"LDG\.E (R\d+)", line)[1] for line in _lines(code, kernel, "^LDG")]
        loaded = dict(zip(registers, addresses))
        (pack,) = _lines(code, kernel, "^F2FP")
        high, low = re.search(r"PACK_AB R\d+, (R\d+), (R\d+)", pack).groups()
        assert loaded[low] == own and loaded[high] != own


def _check_mma(code):
    for kernel, opcode in (("ptx_mmaI6__half", "HMMA.16816.F32"), ("ptx_mmaI13__nv_bfloat16", "HMMA.16816.F32.BF16")):
        (product,) = _lines(code, kernel, r"^HMMA")
        name, *operands = re.split(r",? ", product.strip())
        assert name == opcode
        loaded = [re.match(r"LDG\.E\.(64|128) (R\d+)", line).groups() for line in _lines(code, kernel, r"^LDG")]
        b = next(register for bits, register in loaded if bits == "64")
        assert operands[2] == b, "b as it was loaded: two registers in their order"
        assert {operands[1], operands[3]} <= {register for bits, register in loaded if bits == "128"}, "a and d as they were loaded"
        assert re.match(rf"STG\.E\.128 .*, {operands[0]}", _lines(code, kernel, r"^STG")[0])
        every = _lines(code, kernel, "")
        between = every[next(i for i, line in enumerate(every) if line.startswith("LDG.E.64 ")) + 1 : every.index(product)]
        assert not [line for line in between if re.search(rf" R({b[1:]}|{int(b[1:]) + 1}),", line)], "nothing is moved there in between"


def _check_ldmatrix(code):
    for matrices in (2, 4):
        for transposed, kind in ((0, "M88"), (1, "MT88")):
            (load,) = _lines(code, rf"ptx_ldmatrixILi{matrices}ELb{transposed}", r"^LDSM")
            assert load.startswith(f"LDSM.16.{kind}.{matrices} ")
            first = int(re.search(r" R(\d+),", load)[1])
            stored = dict(_places_and_registers(_lines(code, rf"ptx_ldmatrixILi{matrices}ELb{transposed}", "STG")))
            # four bytes each, or the registers of one vector
            assert all(register == first + place // 4 for place, register in stored.items()) and 0 in stored, "matrices in their order"


def _check_cp_async(code):
    copies = _lines(code, "ptx_cp_async", r"LDGSTS")
    assert len(copies) == 2
    for copy in copies:
        assert copy.startswith("LDGSTS.E.BYPASS.LTC128B.128 "), "all lanes copy, past L1"
        assert re.search(r", !?P\d$", copy.strip()), "a predicate of the source: zeros are written where it isn't valid"
    assert [line.split()[0] for line in _lines(code, "ptx_cp_async", r"^LDGDEPBAR|^DEPBAR")] == ["LDGDEPBAR", "LDGDEPBAR", "DEPBAR.LE", "DEPBAR.LE"]
    assert [line.split()[-1] for line in _lines(code, "ptx_cp_async", r"^DEPBAR")] == ["0x1", "0x0"]


def _check_turns(code):
    """Acquire: a strong load, then L1 is forgotten. Release: what came before is in memory, then a strong store."""
    order = [line.split()[0] for line in _lines(code, "ptx_turns", r"STRONG|CCTL|MEMBAR")]
    assert [name.rstrip(";") for name in order] == [
        "ATOMG.E.ADD.STRONG.GPU", "LDG.E.STRONG.GPU", "CCTL.IVALL", "LDG.E.STRONG.GPU", "STG.E.STRONG.GPU", "MEMBAR.ALL.GPU", "STG.E.STRONG.GPU",
    ]  # fmt: skip


def test_products_take_their_operands_in_order(code):
    _check_mma(code[1])


def test_ldmatrix_loads_so_many_matrices_and_transposes_where_asked(code):
    _check_ldmatrix(code[1])


def test_cp_async_fills_with_zeros_and_waits_for_its_groups(code):
    _check_cp_async(code[1])


def test_a_release_stands_behind_a_fence_and_an_acquire_forgets_what_is_cached(code):
    _check_turns(code[1])


def test_additions_in_memory_are_one_instruction_each_and_of_four_values_one_on_hopper(code):
    arch, found = code
    (single,) = _lines(found, "ptx_redE?P", "RED")
    several = _lines(found, "ptx_red_vector", "RED")
    name = "RED.E.ADD.F32" if arch == 80 else "REDG.E.ADD.F32"
    assert single.startswith(f"{name}.FTZ.RN.STRONG.GPU ")
    if arch == 80:
        places = [int(re.search(r"\+(0x\w+)", line)[1], 16) if "+0x" in line else 0 for line in several]
        assert places == [0, 4, 8, 12] and all(line.startswith(f"{name}.FTZ.RN.STRONG.GPU ") for line in several)
    else:
        assert len(several) == 1 and several[0].startswith("REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU ")


def test_streamed_rows_pass_by_l1_and_are_predicated_not_branched(code):
    _check_stream(code[1])


def test_the_first_of_a_pair_is_the_lower_half(code):
    _check_pairs(code[1])


WRONG = {
    "b registers exchanged": ('"r"(b[0]), "r"(b[1])', '"r"(b[1]), "r"(b[0])', _check_mma),
    "trans left out": ("x4.trans.shared.b16", "x4.shared.b16", _check_ldmatrix),
    "never zero-fills": ('"r"(valid ? 16 : 0)', '"r"(16)', _check_cp_async),
    "release relaxed": ("st.release.gpu", "st.relaxed.gpu", _check_turns),
    "acquire relaxed": ("ld.acquire.gpu", "ld.relaxed.gpu", _check_turns),
    "matrices in another order": ("m8n8.x4.shared.b16 {%0, %1, %2, %3}", "m8n8.x4.shared.b16 {%0, %2, %1, %3}", _check_ldmatrix),
    "loads what isn't valid": ("@valid ld.global", "@!valid ld.global", _check_stream),
    "one value of four stored twice": ("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4}", "st.global.cs.v4.u32 [%0], {%1, %2, %3, %3}", _check_stream),
    "halves of a pair exchanged": ("__floats2bfloat162_rn(low, high)", "__floats2bfloat162_rn(high, low)", _check_pairs),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_word_of_ptx_is_seen(tools, tmp_path, fault):
    right, wrong, check = WRONG[fault]
    shutil.copytree(CSRC / "common", tmp_path / "common")
    header = tmp_path / "common" / "ptx.cuh"
    text = header.read_text()
    assert right in text
    header.write_text(text.replace(right, wrong))
    with pytest.raises(AssertionError):
        check(_code(tools, 80, tmp_path, tmp_path))
