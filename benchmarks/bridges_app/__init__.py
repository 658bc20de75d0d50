"""The site that the benchmark of bridges runs."""
