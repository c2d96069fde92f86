"""Training: images in, a model file out.

Top-down: ``recipe`` states what to train, ``loop`` trains it, ``stage`` makes the steps of one of its stages, and
``run`` has the state that these share. ``data`` makes the batches, ``objective`` the losses and the measurements;
``checkpoint`` and ``run_folder`` read and write what a run keeps.
"""
