"""The dispatch: what runs, what is forced, and what it says about it."""

import copy
import logging
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import lmmblocks
from lmmblocks import ops
from lmmblocks.ops import dispatch as dispatch_module
from lmmblocks.ops.backend import backend
from lmmblocks.ops.dispatch import (
    _BROKEN,
    _LADDERS,
    _LAST,
    _LOGGED,
    ENVIRONMENT,
    Implementation,
    select,
    verdicts,
)
from lmmblocks.ops.explain import table
from lmmblocks.spec import LmmError


def swiglu_name():
    x = torch.ones(2)
    return select("swiglu", x, x).name


def test_context_forces_and_gives_back():
    x, weight = torch.randn(3, 4), torch.ones(4)
    assert select("rms_norm", x, weight, 1e-5).name == "torch"
    with backend(rms_norm="reference"):
        assert select("rms_norm", x, weight, 1e-5).name == "reference"
        with backend(rms_norm="auto"):
            assert select("rms_norm", x, weight, 1e-5).name == "torch"
        assert backend.chosen("rms_norm") == "reference"
    assert backend.chosen("rms_norm") == "auto"


def test_environment_forces(monkeypatch):
    x, weight = torch.randn(3, 4), torch.ones(4)
    monkeypatch.setenv(ENVIRONMENT, "rms_norm=reference, attention=auto")
    assert select("rms_norm", x, weight, 1e-5).name == "reference"
    monkeypatch.setenv(ENVIRONMENT, "rms_norm")
    with pytest.raises(LmmError, match="op=implementation"):
        ops.rms_norm(x, weight)
    for text in ("rms_norm=reference,", ",rms_norm=reference, ,"):
        monkeypatch.setenv(ENVIRONMENT, text)
        assert select("rms_norm", x, weight, 1e-5).name == "reference"
    monkeypatch.setenv(ENVIRONMENT, ",")
    assert select("rms_norm", x, weight, 1e-5).name == "torch"


WRONG_IN_THE_ENVIRONMENT = (
    ("nonsense", "expected 'op=implementation' pairs joined by commas, found 'nonsense'"),
    ("attention=nope", "op 'attention' has no implementation 'nope'; it has "),
    ("attn=torch", "unknown op 'attn'; known: "),
)


@pytest.mark.parametrize("text, message", WRONG_IN_THE_ENVIRONMENT)
def test_a_wrong_environment_is_named_before_any_part_is_tried(monkeypatch, text, message):
    monkeypatch.setenv(ENVIRONMENT, text)
    with pytest.raises(LmmError, match=f"^{ENVIRONMENT}='{text}': {message}"):
        ops.swiglu(torch.ones(2), torch.ones(2))
    with pytest.raises(LmmError, match=f"^{ENVIRONMENT}='{text}': {message}"):
        lmmblocks.build("llava15-tiny", weights="random", device="meta")


@pytest.mark.parametrize("name", [3, None, "torhc"])
def test_what_is_no_implementation_is_refused(name):
    with pytest.raises(LmmError, match=f"op 'attention' has no implementation {name!r}; it has .*, or 'auto'"):
        backend(attention=name)
    with pytest.raises(LmmError, match=f"op 'swiglu' has no implementation {name!r}"):
        ops.swiglu(torch.ones(2), torch.ones(2), backend=name)


def test_unknown_names_are_refused_with_the_closest():
    with pytest.raises(LmmError, match="did you mean 'attention'"):
        backend(atention="torch")
    with pytest.raises(LmmError, match="did you mean 'reference'"):
        backend(attention="referense")


def test_refusals_are_explained():
    x, weight = torch.randn(3, 4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)
    ops.rms_norm(x, weight)
    lines = backend.explain(200).splitlines()
    row = next(index for index, line in enumerate(lines) if line.startswith("rms_norm "))
    assert lines[row].split()[1:3] == ["auto", "reference"] and "triton > torch > reference" in lines[row]
    assert lines[row + 1].strip().startswith("triton: ") and lines[row + 2].strip().startswith("torch: rounds once")


@pytest.mark.parametrize("width", [80, 100, 140])
def test_explanation_keeps_to_its_width_and_loses_no_word(width):
    ops.rms_norm(torch.randn(3, 4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16))
    lines = backend.explain(width).splitlines()
    assert max(map(len, lines)) <= width
    assert "torch: rounds once instead of twice below fp32, unlike Llama" in " ".join(" ".join(lines).split())


def test_titles_keep_to_the_width_beside_long_names():
    rows = [("attention_of_cls", "cuda_decode", ("cuda_decode", "reference"), "triton_decode", [("cuda_decode", "no device")])]
    assert max(map(len, table(rows, 80).splitlines())) <= 80


def test_own_implementation_goes_on_top_and_may_refuse():
    try:
        backend.register("swiglu", "mine", lambda gate, up: gate, lambda gate, up: True if gate.numel() > 2 else "too small")
        assert swiglu_name() == "reference"
        assert torch.equal(ops.swiglu(torch.ones(3), torch.zeros(3)), torch.ones(3))
        with pytest.raises(LmmError, match="already has"):
            backend.register("swiglu", "mine", lambda gate, up: up)
    finally:
        _LADDERS["swiglu"] = [entry for entry in _LADDERS["swiglu"] if entry.name != "mine"]


@pytest.fixture
def toy_op():
    """An op with a ladder of its own: ``toy(x)`` returns the name of what ran."""
    _LADDERS["toy"] = [Implementation(name, lambda x, name=name: name) for name in ("fast", "middle", "reference")]
    yield "toy"
    for record in (_LADDERS, _LAST):
        record.pop("toy", None)
    _LOGGED.discard("toy")
    _BROKEN.pop(("toy", "fast"), None)


def toy(x=0, **kwargs):
    return dispatch_module.dispatch("toy", x, **kwargs)


def replaced(name, **changes):
    index = next(i for i, entry in enumerate(_LADDERS["toy"]) if entry.name == name)
    old = _LADDERS["toy"][index]
    _LADDERS["toy"][index] = Implementation(**{"name": name, "run": old.run, **changes})


def test_distrust_binds_auto_only_and_is_explained(toy_op):
    replaced("fast", trusted=lambda x: "never proven here")
    assert toy() == "middle" and toy(backend="fast") == "fast"
    toy()
    assert "fast: never proven here" in backend.explain()
    assert verdicts("toy", 0) == [("fast", "never proven here"), ("middle", True), ("reference", True)]


def test_first_fallback_of_an_op_is_logged_once_at_debug_level(toy_op, caplog):
    replaced("fast", supports=lambda x: "too odd")
    with caplog.at_level(logging.DEBUG, logger="lmmblocks"):
        toy(), toy()
    records = [record for record in caplog.records if "toy" in record.getMessage()]
    assert [(record.levelno, record.getMessage()) for record in records] == [(logging.DEBUG, "toy runs as middle: fast: too odd")]


def test_foreign_code_that_raises_is_passed_by_from_then_on(toy_op, caplog):
    calls = []

    def fails(x):
        calls.append(x)
        raise RuntimeError("No valid engine\nwall of text")

    replaced("fast", run=fails, foreign=True)
    assert toy() == "middle" and toy() == "middle" and len(calls) == 1
    assert "RuntimeError: No valid engine; not tried again" in backend.explain(200)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    with pytest.raises(RuntimeError, match="No valid engine"):
        toy(backend="fast")


def test_foreign_code_that_runs_out_of_memory_says_so(toy_op):
    def full(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    replaced("fast", run=full, foreign=True)
    with pytest.raises(torch.OutOfMemoryError):
        toy()


def test_own_code_that_raises_is_never_hidden(toy_op):
    def wrong(x):
        raise RuntimeError("a mistake of ours")

    replaced("fast", run=wrong)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        toy()


class Leaf(torch.nn.Module):
    """Calls an op and notes what ran; its backward needs its input, so a checkpoint computes it again."""

    def __init__(self):
        super().__init__()
        self.ran = []

    def forward(self, x):
        self.ran.append(toy())
        return x * x


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.layers = torch.nn.Linear(2, 2), torch.nn.ModuleList([Leaf(), Leaf()])

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.vision, self.language = Tower(), Tower()

    def forward(self, x):
        return self.language(self.vision(x))

    def run(self):
        for leaf in (*self.vision.layers, *self.language.layers):
            leaf.ran.clear()
        self(torch.ones(1, 2))
        return [leaf.ran for leaf in (*self.vision.layers, *self.language.layers)]


FAST, MIDDLE, REFERENCE = ["fast"], ["middle"], ["reference"]


def test_override_holds_for_matching_modules_until_removed(toy_op):
    model = Pair()
    handle = lmmblocks.backend.override(model, {"vision.*": {"toy": "reference"}, "language.layers.1": {"toy": "middle"}})
    assert model.run() == [REFERENCE, REFERENCE, FAST, MIDDLE]
    assert handle.modules == dict.fromkeys(["vision.layers.0", "vision.layers.1"], {"toy": "reference"}) | {"language.layers.1": {"toy": "middle"}}
    handle.remove()
    handle.remove()
    assert model.run() == [FAST] * 4
    with backend.override(model, {"language": {"toy": "middle"}}):
        assert model.run() == [FAST, FAST, MIDDLE, MIDDLE]
    assert model.run() == [FAST] * 4


@pytest.mark.parametrize("reverse", [False, True])
def test_innermost_pattern_wins_whatever_the_order(toy_op, reverse):
    choices = {"vision.*": {"toy": "reference"}, "vision.layers.1": {"toy": "auto"}, "": {"toy": "middle"}}
    if reverse:
        choices = dict(reversed(choices.items()))
    model = Pair()
    with backend.override(model, choices):
        assert model.run() == [REFERENCE, FAST, MIDDLE, MIDDLE]


def test_override_stands_between_a_block_and_a_call(toy_op):
    model = Pair()
    with backend(toy="middle"), backend.override(model, {"vision": {"toy": "reference"}}):
        assert model.run() == [REFERENCE, REFERENCE, MIDDLE, MIDDLE]
        assert toy() == "middle"
    with backend.override(model, {"vision": {"toy": "reference"}}), backend.override(model, {"vision": {"toy": "middle"}}):
        assert model.run() == [MIDDLE, MIDDLE, FAST, FAST]


def test_all_that_is_wrong_with_an_override_is_said_at_once(toy_op):
    choices = {"visoin.*": {"toy": "fast"}, "vision.first": {"toy": "fast"}, "language": {"toy": "fats"}, "vision": {"toi": "auto"}}
    with pytest.raises(LmmError) as error:
        backend.override(Pair(), choices)
    message = str(error.value)
    assert "no module is named like 'visoin.*'; did you mean 'vision" in message
    assert "'vision.first' matches only modules of torch.nn" in message
    assert "did you mean 'fast'" in message and "unknown op 'toi'" in message


def test_choices_are_given_back_when_a_module_raises(toy_op):
    model = Pair()

    def stop(module, args):
        raise ValueError("stopped")

    early = model.vision.layers[0].register_forward_pre_hook(stop)  # raises before the choice of this module is made
    with backend(toy="middle"), backend.override(model, {"vision": {"toy": "reference"}}):
        late = model.vision.layers[1].register_forward_pre_hook(stop)
        for hook in (early, late):
            with pytest.raises(ValueError, match="stopped"):
                model(torch.ones(1, 2))
            assert backend.chosen("toy") == "middle"
            hook.remove()
        assert model.run() == [REFERENCE, REFERENCE, MIDDLE, MIDDLE]
    assert backend.chosen("toy") == "auto"


def test_a_block_computed_again_in_the_backward_chooses_as_before(toy_op):
    model = Pair()
    x = torch.ones(1, 2, requires_grad=True)
    with backend.override(model, {"vision": {"toy": "reference"}}):
        leaf = model.vision.layers[0]
        for reentrant in (False, True):
            leaf.ran.clear()
            out = checkpoint(leaf, x, use_reentrant=reentrant)
            out.sum().backward()
            assert leaf.ran == ["reference", "reference"]


def test_a_model_with_an_override_can_be_copied(toy_op):
    model = Pair()
    with backend.override(model, {"vision": {"toy": "reference"}}):
        assert copy.deepcopy(model).run() == [REFERENCE, REFERENCE, FAST, FAST]
        assert backend.chosen("toy") == "auto"


def test_threads_follow_the_first_one_and_choose_for_themselves(toy_op):
    def other():
        seen.append(toy())
        with backend(toy="reference"):
            seen.append(toy())
        seen.append(toy())

    seen = []
    with backend(toy="middle"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen == ["middle", "reference", "middle"] and toy() == "middle"
    assert toy() == "fast"


def test_compiled_code_follows_blocks_and_overrides():
    """One graph without breaks; a choice that changes is seen, and compiled again."""

    class Norm(torch.nn.Module):
        def forward(self, x):
            return ops.rms_norm(x, torch.ones(4))

    torch.compiler.reset()
    model = torch.nn.Sequential(Norm())
    ran = []

    def compiled(x):
        out = run(x)
        ran.append(_LAST["rms_norm"][0])
        return out

    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 4)
    expected = ops.rms_norm(x, torch.ones(4), backend="reference")
    torch.testing.assert_close(compiled(x), expected)
    with backend(rms_norm="reference"):
        torch.testing.assert_close(compiled(x), expected, rtol=0, atol=0)
    with backend.override(model, {"0": {"rms_norm": "reference"}}):
        torch.testing.assert_close(compiled(x), expected, rtol=0, atol=0)
    compiled(x)
    assert ran == ["torch", "reference", "reference", "torch"]
