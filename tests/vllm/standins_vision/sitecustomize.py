"""Python runs this first if this folder is on PYTHONPATH: it defines two operators that importing torchvision needs.

There is no torchvision for the torch of vLLM's CPU build. Its Python parts, all that Qwen2.5-VL's image processor
needs, work beside it once the operators of its missing library have names.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
