"""A site with a user model of its own, in a database of its own."""
