"""How good an image is: distances to an original, and measures that need none."""
