"""Golden outputs: what a served model answers, recorded and compared, so that CI can prove that nothing changed."""
