"""A site that has the server API."""
