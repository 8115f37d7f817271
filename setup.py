"""Maps ``kernels/`` to ``lmmblocks.kernels`` and builds ``csrc/`` where it can be built; everything else is in ``pyproject.toml``.

``kernels/`` has no ``__init__.py``: the folder lies in the repository root, and a regular package of that name there would shadow the
``kernels`` package from Hugging Face, which transformers imports when it is found. Imports no torch and looks for no GPU.
"""

import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))
from build_extension import BuildCuda, BuildPython, extensions

setup(
    packages=[*find_packages(include=["lmmblocks", "lmmblocks.*"]), "lmmblocks.kernels"],
    package_dir={"lmmblocks": "lmmblocks", "lmmblocks.kernels": "kernels"},
    package_data={"lmmblocks": ["py.typed"], "lmmblocks.kernels": ["*.json"]},
    include_package_data=False,
    ext_modules=extensions(),
    cmdclass={"build_py": BuildPython, "build_ext": BuildCuda},
)
