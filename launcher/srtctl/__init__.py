"""Driving srtctl: the pinned checkout, its configuration, the recipe, the submission."""
