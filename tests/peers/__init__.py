"""Other channel layers' own suites, run against ours."""
