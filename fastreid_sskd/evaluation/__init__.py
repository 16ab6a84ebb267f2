"""Ranking and the evaluation of teachers and ensemble."""
