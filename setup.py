"""The wheel's contents; everything else about the project is in pyproject.toml.

The top-level directories runners/ and recipes/ and the rules' pages go into the wheel as data of the package, so that
an ordinary ``pip install .`` finds them (launcher/core/shipped.py).
"""

from setuptools import find_packages, setup

DATA = {f"launcher.shipped_data.{name.replace('/', '.')}": name for name in ("runners", "recipes", "docs/rules")}

setup(
    packages=[*find_packages(include=["launcher", "launcher.*"]), *DATA],
    package_dir=DATA,
    package_data={
        **{package: ["**/*"] for package in DATA},
        "launcher.check": ["*.json"],
        "launcher.doctor": ["*.sh", "*.yaml"],
        "launcher.image": ["*.yaml"],
        "launcher.container": ["*.sh"],
        "launcher.plan": ["*.sh"],
        "launcher.srtctl": ["*.yaml"],
        "launcher.rehearsal": ["*.sh", "*.yaml"],
        "launcher.report": ["*.css", "*.js", "*.yaml"],
        "launcher.result": ["*.yaml"],
    },
)
