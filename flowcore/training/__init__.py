"""Training: images in, a model file out.

Top-down: ``recipe`` states what to train, ``loop`` runs it, ``stage`` makes the steps of one part of it.
"""
