"""The emulated `_C` is the real binding with the real launchers, on the CPU."""


def test_the_extension_says_that_it_is_emulated(cuda_emulation):
    facts = cuda_emulation.facts()
    assert facts["emulated"] is True
    assert facts["archs"] == ""


def test_the_gate_serves_cpu_tensors_while_it_is_loaded(cuda_emulation):
    import torch

    from lmmblocks.ops import cuda_gate

    row = torch.zeros(2, 64, dtype=torch.bfloat16)
    assert cuda_gate.cuda_refusal(row) is None
    assert "emulator" in cuda_gate.cuda_distrust("splice", row)
