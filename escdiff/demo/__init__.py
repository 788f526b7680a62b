"""A web page to mix shape and appearance: `escdiff-demo`."""
