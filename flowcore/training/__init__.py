"""Training: images in, a model file out.

Top-down: ``recipe`` states what to train, ``loop`` trains it, ``stage`` makes the steps of one part of it, and ``run``
is what these share.
"""
