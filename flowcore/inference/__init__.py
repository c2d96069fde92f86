"""The same flow, folded to be fast and small; see ``plan.py``."""
