from ftcore import Transforms, hookimpl


@hookimpl
def make_transforms() -> Transforms:
    import numpy as np
    import torch

    return Transforms(*[lambda image: torch.from_numpy(np.array(image)[None] / np.float32(255))] * 2)
