"""ESC-Bench's tasks of several things, figures, faces and edits: asked for, painted, read by the scene oracle."""
