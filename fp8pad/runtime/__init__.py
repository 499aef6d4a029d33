"""The vLLM plugin: serves padded checkpoints with activations padded, and nothing else, in a forward.

Nothing of vLLM or torch is imported before `register()` is called: vLLM logs and swallows what goes wrong in importing
a plugin, but not what `register()` raises.
"""


def register() -> None:
    """Register the quantization method `fp8pad` with vLLM; it does nothing for checkpoints that fp8pad did not make.

    vLLM calls it in each of its processes, through the entry point group `vllm.general_plugins`. Raises `EngineError`
    if the installed vLLM is not one that the runtime can rely on.
    """
    import vllm

    from fp8pad.runtime.contract import check_engine

    check_engine(vllm.__version__)

    from vllm.model_executor.layers.quantization import register_quantization_config

    from fp8pad.record import QUANT_METHOD
    from fp8pad.runtime.config import make_config_class
    from fp8pad.runtime.misnamed import load_misnamed_layers
    from fp8pad.runtime.mla import cut_dequantized_weights

    register_quantization_config(QUANT_METHOD)(make_config_class())
    cut_dequantized_weights()
    load_misnamed_layers()
