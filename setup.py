"""The wheel's contents; everything else about the project is in pyproject.toml.

The top-level directories runners/ and recipes/ and the text of docs/ go into the wheel as data of the package, so that
an ordinary ``pip install .`` finds them (launcher/core/shipped.py); the manual page and completion go to share/.
"""

import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).parent))

from launcher.cli.arguments import parser
from launcher.cli.helping import SCRIPTS, manual

# In a clone they are read where they lie. Without a package from elsewhere setuptools installs the clone as a path; else
# it installs a finder, which costs every start of Python 14 ms.
IN_A_CLONE = "editable_wheel" in sys.argv
DATA = {} if IN_A_CLONE else {f"launcher.shipped_data.{name}": name for name in ("runners", "recipes", "docs")}
# The manual page and the shells' completion, made of the same parsers as --help.
SHARED = {
    "man/man1/launcher.1": manual(parser()),
    "bash-completion/completions/launcher": SCRIPTS["bash"],
    "zsh/site-functions/_launcher": SCRIPTS["zsh"],
    "fish/vendor_completions.d/launcher.fish": SCRIPTS["fish"],
}
for name, text in SHARED.items():
    made = Path("build/share", name)
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(text, encoding="utf-8")

setup(
    data_files=[(f"share/{Path(name).parent}", [f"build/share/{name}"]) for name in SHARED],
    packages=[*find_packages(include=["launcher", "launcher.*"]), *DATA],
    package_dir={"": "."} | DATA,
    package_data={
        **{package: ["**/*"] for package in DATA},
        "launcher.shipped_data.docs": ["**/*.md"],
        "launcher.check": ["*.json"],
        "launcher.cli": ["*.txt", "*.yml", "*.bash", "*.zsh", "*.fish"],
        "launcher.doctor": ["*.sh", "*.yaml"],
        "launcher.image": ["*.yaml"],
        "launcher.container": ["*.sh"],
        "launcher.plan": ["*.sh"],
        "launcher.srtctl": ["*.yaml"],
        "launcher.rehearsal": ["*.sh", "*.yaml"],
        "launcher.report": ["*.css", "*.js", "*.yaml"],
        "launcher.result": ["*.yaml"],
        "launcher.run": ["*.yaml"],
        "launcher.sweep": ["*.yaml"],
    },
)
