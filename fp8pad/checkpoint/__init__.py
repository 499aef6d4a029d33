"""A checkpoint as files: read strictly, written beside its destination and published whole."""
