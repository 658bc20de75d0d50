"""Everything at once, broken at random, and counted: see ``python -m tests.soak --help``."""
