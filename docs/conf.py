"""Sphinx settings: Markdown pages, the default theme, no autodoc (so that building needs neither torch nor a model)."""

project = "VLM-Pruner"
copyright = "the VLM-Pruner authors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns: list[str] = []
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Training-free visual token pruning",
    "fixed_sidebar": True,
    "page_width": "1000px",
}
