"""The command line: ``python -m flowcore COMMAND``."""
