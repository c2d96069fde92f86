"""A second node pack, for the tests only: it makes images that no file can hold, and reports what arrives."""

import copy

import torch


class TestImage:
    """An IMAGE of any shape, dtype and content."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "flowcore tests"

    @classmethod
    def INPUT_TYPES(cls):
        sizes = {name: ("INT", {"default": 1, "min": 0}) for name in ("batch", "height", "width", "channels")}
        return {"required": sizes | {"fill": ("STRING", {}), "dtype": (["float32", "float16", "float64", "video"],)}}

    def run(self, batch, height, width, channels, fill, dtype):
        shape = (batch, height, width, channels)
        if fill == "gradient":
            rows, columns = torch.linspace(0, 1, height), torch.linspace(0, 1, width)
            image = (rows[None, :, None, None] + columns[None, None, :, None]).div(2).expand(shape).clone()
        else:
            image = torch.full(shape, float(fill))
        if dtype == "video":  # (batch, frames, height, width, channels), as some packs pass it on
            return (image[None],)
        return (image.to(getattr(torch, dtype)),)


class TestReport:
    """Puts facts about an IMAGE into the history."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "flowcore tests"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def run(self, image):
        facts = {
            "shape": list(image.shape),
            "dtype": [str(image.dtype).removeprefix("torch.")],
            "range": [float(image.min()), float(image.max())],
            "rows": image.float().flatten(1).tolist() if image.numel() < 20000 else [],
        }
        return {"ui": facts}


class TestSmallMemory:
    """A flow on a device whose memory is too small for more than some pixels at a time."""

    RETURN_TYPES = ("FLOW_MODEL",)
    FUNCTION = "run"
    CATEGORY = "flowcore tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("FLOW_MODEL",), "pixels": ("INT", {"default": 1024})}}

    def run(self, model, pixels):
        # A copy: the host keeps the model that came in, and later runs get it back.
        model = model.__class__(copy.deepcopy(model.model), model.load_device, model.offload_device)

        def refuse(module, inputs):
            if inputs[0].shape[-2] * inputs[0].shape[-1] > pixels:
                raise torch.OutOfMemoryError("CUDA out of memory. (A test: this device has little.)")

        model.model.encoder.register_forward_pre_hook(refuse)
        return (model,)


NODE_CLASS_MAPPINGS = {
    "FlowcoreTestImage": TestImage,
    "FlowcoreTestReport": TestReport,
    "FlowcoreTestSmallMemory": TestSmallMemory,
}
