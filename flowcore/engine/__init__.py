"""The same flow, folded: weights fused, run in strips, with progress reported. The results are the flow's.

A first reading can skip this folder.

- ``compiled.py``: a ``CompiledFlow``, which ``compiled(flow)`` returns: an immutable, optimized copy of a ``Flow``.
- ``encoders.py``: its encoders, whose features are never enlarged.
- ``steps.py``: a ``FoldedLevel`` is made of ``Mixing`` (``fold.py``: actnorms and 1x1 convolutions as one matrix) and
  ``FoldedAffine`` (couplings and injectors, each with a ``FoldedConditioner`` of ``conditioners.py``).
- ``strips.py``: all of them run on a few rows at a time, with ``convolutions.py``.
- ``condition_cache.py``: encoded conditions of the latest images.
"""
