"""The dispatch: what runs, what is forced, and what it says about it."""

import pytest
import torch

from lmmblocks import ops
from lmmblocks.ops.dispatch import _LADDERS, ENVIRONMENT, backend, select
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


def test_unknown_names_are_refused_with_the_closest():
    with pytest.raises(LmmError, match="did you mean 'attention'"):
        backend(atention="torch")
    with pytest.raises(LmmError, match="did you mean 'reference'"):
        backend(attention="referense")


def test_refusals_are_explained():
    x, weight = torch.randn(3, 4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)
    ops.rms_norm(x, weight)
    line = next(row for row in backend.explain().splitlines() if row.startswith("rms_norm"))
    assert "reference" in line and "rounds once" in line


def test_own_implementation_goes_on_top_and_may_refuse():
    try:
        backend.register("swiglu", "mine", lambda gate, up: gate, lambda gate, up: True if gate.numel() > 2 else "too small")
        assert swiglu_name() == "reference"
        assert torch.equal(ops.swiglu(torch.ones(3), torch.zeros(3)), torch.ones(3))
        with pytest.raises(LmmError, match="already has"):
            backend.register("swiglu", "mine", lambda gate, up: up)
    finally:
        _LADDERS["swiglu"] = [entry for entry in _LADDERS["swiglu"] if entry.name != "mine"]
