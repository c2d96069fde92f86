"""Images as files and as tensors: reading and writing, sizes, colors and contact sheets."""
