"""The wheel's contents; everything else about the project is in pyproject.toml.

The top-level directories runners/ and recipes/ go into the wheel as data of the package, so that an ordinary
``pip install .`` finds them (launcher/shipped.py).
"""

from setuptools import find_packages, setup

DATA = {"launcher.shipped_data.runners": "runners", "launcher.shipped_data.recipes": "recipes"}

setup(
    packages=[*find_packages(include=["launcher", "launcher.*"]), *DATA],
    package_dir=DATA,
    package_data={package: ["**/*"] for package in DATA},
)
