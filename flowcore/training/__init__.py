"""Training: photographs in, a model file out."""
