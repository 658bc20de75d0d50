"""Where messages are kept. `base` says what a broker promises, `runtime` which one to use."""
