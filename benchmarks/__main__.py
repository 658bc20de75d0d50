"""``python -m benchmarks [NAME [OPTIONS]]``: run one benchmark, or list them."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

from tests.support import Process


def available() -> dict[str, str]:
    """Return each benchmark's name and first line: modules that have a ``main``."""
    found = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        source = Path(__file__).with_name(f"{module.name}.py")
        text = source.read_text() if source.exists() else ""
        if not module.name.startswith("_") and "\ndef main(" in text:
            found[module.name] = text.split('"""')[1].splitlines()[0]
    return found


def run(argv: list[str]) -> int:
    """Run the benchmark that *argv* names."""
    names = available()
    if not argv or argv[0] not in names:
        print("usage: python -m benchmarks NAME [OPTIONS]; NAME is one of")
        for name, line in names.items():
            print(f"  {name:10} {line}")
        return 2 if argv else 0
    Process.forks = False
    module = importlib.import_module(f"benchmarks.{argv[0]}")
    return int(module.main(argv[1:]) or 0)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
