"""The host: the only files that import anything of ComfyUI.

Everything that differs between its versions ends here. The pack asks for 0.20.0 and still loads on 0.3.75, where
arguments that the host does not know are left out.
"""
