"""Gives an editable install of a clone two packages that a wheel must not hold; pyproject.toml has everything else.

`llava` and `Qwen2VL_VLMPruner` are the names that the field's scripts use. Other packages own them too: a wheel with
`llava` in it would overwrite the files of an installed LLaVA.
"""

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

OF_A_CLONE = {"llava": "llava", "Qwen2VL_VLMPruner": "Qwen2-VL/Qwen2VL_VLMPruner"}


class CloneInstall(editable_wheel):
    """`pip install -e`: maps a clone's own packages beside `vlm_pruner`."""

    def run(self) -> None:
        self.distribution.package_dir = {"vlm_pruner": "vlm_pruner", **OF_A_CLONE}
        self.distribution.packages = [*find_packages(include=["vlm_pruner*"]), *OF_A_CLONE]
        super().run()


setup(cmdclass={"editable_wheel": CloneInstall})
