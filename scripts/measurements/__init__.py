"""Measurements that docs/ quote; no part of scripts/test. See ``python -m scripts.measurements.images --help``.

They use the tests' own pieces (a registry of images, a scripted command runner), so they run from a checkout only.
"""
