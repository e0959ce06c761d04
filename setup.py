"""What pyproject.toml cannot say: a clone's own packages, and a README whose links hold on a registry's page.

`llava` and `Qwen2VL_VLMPruner` are the names that the field's scripts use. Other packages own them too: a wheel with
`llava` in it would overwrite the files of an installed LLaVA. So only an editable install of a clone maps them.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

OF_A_CLONE = {"llava": "llava", "Qwen2VL_VLMPruner": "Qwen2-VL/Qwen2VL_VLMPruner"}
PAGES = "https://github.com/Casey-bit/VLMPruner/blob/main/"
PICTURES = "https://raw.githubusercontent.com/Casey-bit/VLMPruner/main/"
LOCAL_LINK = re.compile(r"\]\((?!https?:|#)([^)\s]+)\)")


class CloneInstall(editable_wheel):
    """`pip install -e`: maps a clone's own packages beside `vlm_pruner`."""

    def run(self) -> None:
        self.distribution.package_dir = {"vlm_pruner": "vlm_pruner", **OF_A_CLONE}
        self.distribution.packages = [*find_packages(include=["vlm_pruner*"]), *OF_A_CLONE]
        super().run()


def absolute(link: "re.Match[str]") -> str:
    base = PICTURES if Path(link[1]).suffix in (".png", ".svg") else PAGES
    return f"]({base}{link[1]})"


readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(
    cmdclass={"editable_wheel": CloneInstall},
    long_description=LOCAL_LINK.sub(absolute, readme),
    long_description_content_type="text/markdown",
)
