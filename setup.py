"""Maps ``kernels/`` to ``lmmblocks.kernels``; everything else is in ``pyproject.toml``.

``kernels/`` has no ``__init__.py``: the folder lies in the repository root, and a regular package of that name there would shadow the
``kernels`` package from Hugging Face, which transformers imports when it is found. Imports no torch and looks for no GPU.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["lmmblocks", "lmmblocks.*"]), "lmmblocks.kernels"],
    package_dir={"lmmblocks": "lmmblocks", "lmmblocks.kernels": "kernels"},
    package_data={"lmmblocks": ["py.typed"], "lmmblocks.kernels": ["*.json"]},
    include_package_data=False,
)
