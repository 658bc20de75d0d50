"""What the package counts, as Prometheus wants it. Imported when somebody asks for metrics."""
