"""Thousands of files: jobs, folders, and machines that share them."""
