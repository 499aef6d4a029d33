"""Python runs this first where this folder is on PYTHONPATH: two operators that torchvision's import asks for.

There is no torchvision for the torch of vLLM's CPU build. Its Python parts, all that Qwen2.5-VL's image processor
needs, work beside it once the operators of its missing library have names.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
