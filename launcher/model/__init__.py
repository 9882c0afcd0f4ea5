"""Checkpoints: is it whole, is it the one that was declared, and how it comes to where the job reads it."""
