"""Our own Gradio components: a canvas for marks, and a figure that is updated in place."""
