"""A picture to click and draw on: Gradio's own editor takes seconds for a stroke, this one milliseconds."""

from __future__ import annotations

import html

from dinoviz.ui.components.html_component import Scripted

TEMPLATE = """
<div class="dv-canvas dv-empty" data-tool="click">
  <div class="dv-title-of">TITLE</div>
  <div class="dv-tools" role="toolbar" aria-label="Marking tools">
    <span class="dv-group">
      <button type="button" data-tool="click" title="Click on the object (P)">Click</button>
      <button type="button" data-tool="draw" title="Draw over the object (B), or erase (E)">Draw</button>
    </span>
    <span class="dv-group">
      <button type="button" data-sign="plus" title="Marks are on the object">+ object</button>
      <button type="button" data-sign="minus"
        title="Marks are on the background: also with the right button, or Shift (X)">- background</button>
    </span>
    <label class="dv-size" title="Size of the brush: [ and ]">Brush
      <input type="range" min="2" max="80" step="1"></label>
    <span class="dv-group dv-right">
      <button type="button" data-do="undo" title="Remove the last mark (Ctrl-Z)" disabled>Undo</button>
      <button type="button" data-do="clear" title="Remove all marks" disabled>Clear</button>
      <button type="button" data-do="full" title="Full screen" aria-label="Full screen"><svg
        viewBox="0 0 16 16" width="14" height="14" fill="none" stroke="currentColor" stroke-width="1.8"
        ><path d="M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4"/></svg></button>
    </span>
  </div>
  <div class="dv-room"><div class="dv-stage">
    <img alt="" draggable="false">
    <canvas tabindex="0" role="application"
      aria-label="Picture to mark. Arrow keys move a cross, Enter marks there; B draws, E erases, P clicks."></canvas>
  </div></div>
</div>
"""


class MarkCanvas(Scripted):
    """A picture to mark; the value is JSON of the marks by picture, see `dinoviz.segment.prompts.by_picture`.

    title: above the picture. image: path of the shown picture in Gradio's cache. picture: the key by which its marks
    are kept. size: (width, height) in pixels of the uploaded picture. drawn_marks: how many marks the shown picture
    has in it already. preset: JSON of {"marks": as the value, "at": a time}, replacing those marks.
    """

    def __init__(
        self, value: str = "{}", *, title="", image="", picture="", size=(1, 1), drawn_marks=0, preset="", **options
    ):
        super().__init__(
            value,
            template=TEMPLATE.replace("TITLE", html.escape(title)),
            drawn_by="mark_canvas.js",
            title=title,
            image=image,
            picture=picture,
            size=list(size),
            drawn_marks=drawn_marks,
            preset=preset,
            **options,
        )
