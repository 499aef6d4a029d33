"""A checkpoint as files: read strictly, written next to its destination and published whole."""
