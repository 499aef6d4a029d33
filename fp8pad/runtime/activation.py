"""What the plugin does once a padded checkpoint is claimed, and not before: check vLLM, change what it must, say so."""

import functools
import os

from fp8pad.errors import EngineError
from fp8pad.runtime.contract import slower, untried
from fp8pad.runtime.misnamed import load_misnamed_layers
from fp8pad.runtime.mla import cut_dequantized_weights
from fp8pad.runtime.startup import LOGGER

# Set to 1 to have versions of vLLM refused that were not tried.
STRICT = "FP8PAD_STRICT"


@functools.cache
def activate() -> None:
    """Make this process ready to serve padded checkpoints.

    Raises `EngineError` if its vLLM cannot serve them right. Warns, in one line, if it was not tried or is slower.
    """
    import vllm

    doubt = untried(vllm.__version__)
    if doubt and os.environ.get(STRICT) == "1":
        raise EngineError(f"{doubt}; {STRICT}=1 refuses it")
    remarks = ([doubt] if doubt else []) + slower(vllm.__version__)
    if remarks:
        LOGGER.warning("fp8pad: %s", "; ".join(remarks))
    cut_dequantized_weights()
    load_misnamed_layers()
