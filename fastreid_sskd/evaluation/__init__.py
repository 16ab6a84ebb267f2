"""Features of images, ranking, and the evaluation of teachers and ensemble."""
