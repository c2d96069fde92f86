"""Evaluation: models measured on folders of images, in the numbers of the literature."""
