"""The host: the only files that import anything of ComfyUI.

Everything that differs between its versions ends here. The pack asks for 0.20.0, and refuses to load before.
"""
