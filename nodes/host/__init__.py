"""The only files that import anything of the host; what differs between its versions, 0.20.0 and later, ends here."""
