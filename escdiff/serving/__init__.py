"""A server for teams, `escdiff-serve`, and the engine that the demo paints with, too."""
