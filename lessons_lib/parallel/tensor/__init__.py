"""Tensor parallelism: layers that are split over the ranks (lesson 15)."""
