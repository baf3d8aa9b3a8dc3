"""Says what pyproject.toml cannot: two top-level folders belong to the package, ``kernels`` and ``configs``.

A top-level package called ``kernels`` would shadow Hugging Face's own package of that name and break
``import transformers``. The folder therefore has no ``__init__.py`` and is installed as ``cmsbert_fast.kernels`` only.
The published settings lie where readers look for them, and in a wheel as ``cmsbert_fast/configs``.
"""

from setuptools import find_packages, setup

KERNELS, CONFIGS = "cmsbert_fast.kernels", "cmsbert_fast.configs"
SETTINGS = (CONFIGS, f"{CONFIGS}.baselines", f"{CONFIGS}.tables")

setup(
    packages=[
        *find_packages(include=["cmsbert_fast", "cmsbert_fast.*"]),
        KERNELS,
        *(f"{KERNELS}.{package}" for package in find_packages("kernels")),
        *SETTINGS,
    ],
    package_dir={KERNELS: "kernels", CONFIGS: "configs"},
    package_data={
        "cmsbert_fast": ["py.typed"],
        KERNELS: ["*.json"],
        f"{KERNELS}.cpu": ["*.cpp", "*.h"],
        **{name: ["*.yaml"] for name in SETTINGS},
        "cmsbert_fast.page": ["*.html", "*.css", "*.js"],
    },
)
