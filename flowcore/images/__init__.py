"""Images as files and as tensors: reading and writing, sizes, colors, tiles and contact sheets."""
