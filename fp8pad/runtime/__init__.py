"""The vLLM plugin: serves padded checkpoints. A forward only pads activations and cuts outputs, never weights.

vLLM and torch are not imported before `register()` is called, and vLLM is neither changed nor checked before a padded
checkpoint is claimed: vLLM calls `register()`, and catches no errors, before it starts any model, padded or not.
"""

import logging


def register() -> None:
    """Register the quantization method `fp8pad` with vLLM; it does nothing for checkpoints that fp8pad did not make.

    vLLM calls it in each of its processes, through the entry point group `vllm.general_plugins`. It never raises: if it
    cannot register, vLLM refuses padded checkpoints because it does not know their method, and serves all others.
    """
    try:
        from vllm.model_executor.layers.quantization import register_quantization_config

        from fp8pad.quantization_config import QUANT_METHOD
        from fp8pad.runtime.config import make_config_class

        register_quantization_config(QUANT_METHOD)(make_config_class())
    except Exception as error:  # whatever this vLLM lacks, it must still start other models
        logging.getLogger("vllm.fp8pad").warning(
            "fp8pad: cannot register with this vLLM, which will refuse padded checkpoints: %s: %s",
            type(error).__name__,
            error,
        )
