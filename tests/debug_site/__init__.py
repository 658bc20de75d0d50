"""The site with a view that fails, to look at the pages that Django makes itself."""
