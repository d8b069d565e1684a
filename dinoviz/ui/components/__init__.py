"""Components of the page that Gradio does not have: a canvas to mark, a figure that is updated in place."""
