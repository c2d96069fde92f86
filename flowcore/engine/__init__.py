"""The same flow, folded: weights fused, run in strips, with progress reported. The results are the flow's.

A first reading can skip this folder.

- ``compiled.py``: a ``CompiledFlow``, which ``compiled(flow)`` returns: an immutable, optimized copy of a ``Flow``.
- ``steps.py``: a ``FoldedLevel`` is made of ``Mixing`` (``fold.py``: actnorms and 1x1 convolutions as one matrix) and
  ``FoldedAffine`` (couplings and injectors, each with a ``FoldedConditioner`` of ``conditioners.py``).
- Networks that only one family has are folded there: ``models/FAMILY/folded.py``, which ``Family.folds`` names.
- All of them run on a few rows at a time, with ``strips.py`` and ``convolutions.py`` of ``flows/networks/``.
- ``condition_cache.py``: encoded conditions of the latest images.
"""
