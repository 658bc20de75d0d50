"""Services for the tests of `runservice`."""
