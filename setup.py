"""Gives setuptools what pyproject.toml declares dynamic: the version and the requirements of settings.ini."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
settings = ConfigParser(delimiters=["="])
settings.read(here / "settings.ini")
needs = {name: text.split() for name, text in settings["DEFAULT"].items()}
version = re.search(r'__version__ = "(.+)"', (here / "specialize_nb" / "__init__.py").read_text()).group(1)

setup(
    version=version,
    install_requires=needs["requirements"],
    extras_require={
        "dev": needs["dev_requirements"] + needs["docs_requirements"],
        "transformers": needs["transformers_requirements"],
        "dask": needs["dask_requirements"],
    },
)
