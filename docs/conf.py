"""Sphinx settings: Markdown pages, a reference from docstrings, the commands' help from their parsers."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

project = "VLM-Pruner"
copyright = "the VLM-Pruner authors"
extensions = ["myst_parser", "generated_pages"]
source_suffix = {".md": "markdown"}
exclude_patterns: list[str] = []
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_title = "VLM-Pruner"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_copy_source = False
