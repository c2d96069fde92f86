"""Tasks: image in, image out."""
