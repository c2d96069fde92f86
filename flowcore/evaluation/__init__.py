"""Tables of what models make of folders of images."""
