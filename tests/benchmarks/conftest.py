"""The emulated CUDA extension of `tests/csrc`, for the benchmark's own checks of CUDA kernels."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_spec = spec_from_file_location("emulation_of_csrc", Path(__file__).parents[1] / "csrc" / "conftest.py")
_emulation = module_from_spec(_spec)
_spec.loader.exec_module(_emulation)

emulated_extension, cuda_emulation = _emulation.emulated_extension, _emulation.cuda_emulation
