"""Networks that find things in photographs: faces, scratches."""
