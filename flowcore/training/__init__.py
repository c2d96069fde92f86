"""Training: images in, a model file out.

Top-down: ``recipe`` states what to train, ``loop`` trains it, ``stage`` makes the steps of one part of it, and ``run``
is what these share. ``data`` makes the batches, ``objective`` the losses and the measurements; ``checkpoint`` and
``run_folder`` read and write what a run keeps.
"""
