"""Golden outputs: the outputs of a model, recorded and compared, so that CI can prove that nothing changed."""
