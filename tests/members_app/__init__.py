"""A site with users of its own on an admin site of its own."""
