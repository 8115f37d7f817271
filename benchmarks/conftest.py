"""`pytest benchmarks --benchmark-only` collects the cases of one file; everything else here is a command of its own."""

from pathlib import Path

HERE = Path(__file__).parent
collect_ignore = [str(path.relative_to(HERE)) for path in HERE.rglob("*.py") if path.name not in ("conftest.py", "test_ops.py")]
