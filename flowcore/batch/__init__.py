"""Batches of picture files: jobs, folders with resume, and clusters."""
