"""All imports of ComfyUI, the host; what differs between its versions, 0.20.0 and later, is handled here."""
