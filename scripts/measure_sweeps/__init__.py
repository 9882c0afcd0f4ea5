"""Figures of sweeps, on an emulation of clusters that are larger than this machine: see __main__.py."""
