"""A checkpoint as files: read strictly, staged next to the destination, and published in one step."""
