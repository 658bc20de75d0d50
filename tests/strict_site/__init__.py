"""A project whose middleware and settings get in the way of everything that is not its own page."""
