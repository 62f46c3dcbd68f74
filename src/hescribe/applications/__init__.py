"""Each tool from files to a folder of results: read, compute, draw, write a page."""
