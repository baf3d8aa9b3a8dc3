"""Says what pyproject.toml cannot: the top-level folder ``kernels`` is the package ``cmsbert_fast.kernels``.

A top-level package called ``kernels`` would shadow Hugging Face's own package of that name and break
``import transformers``. The folder therefore has no ``__init__.py`` and is installed under our name only.
"""

from setuptools import find_packages, setup

NAME = "cmsbert_fast.kernels"

setup(
    packages=[
        *find_packages(include=["cmsbert_fast", "cmsbert_fast.*"]),
        NAME,
        *(f"{NAME}.{package}" for package in find_packages("kernels")),
    ],
    package_dir={NAME: "kernels"},
    package_data={NAME: ["*.json"], f"{NAME}.cpu": ["*.cpp", "*.h"]},
)
