"""Says what pyproject.toml cannot: the top-level folder ``kernels`` is the package ``cmsbert_fast.kernels``.

A top-level package called ``kernels`` would shadow Hugging Face's own package of that name and break
``import transformers``. The folder therefore has no ``__init__.py`` and is installed under our name only.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cmsbert_fast", "cmsbert_fast.*"]), "cmsbert_fast.kernels"],
    package_dir={"cmsbert_fast.kernels": "kernels"},
    package_data={"cmsbert_fast.kernels": ["*.json", "cpu/*.cpp", "cpu/*.h"]},
)
