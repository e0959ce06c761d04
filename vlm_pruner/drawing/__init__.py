"""Pictures: which visual tokens were kept, drawn on the original picture, as PNG, as SVG and in a terminal."""

from vlm_pruner.drawing.overlay import Style, overlay, overlay_svg

__all__ = ["Style", "overlay", "overlay_svg"]
