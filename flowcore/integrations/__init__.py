"""Models of flowcore under the interfaces of other programs."""
