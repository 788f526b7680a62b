"""Methods for several things, relations and actions, on the same references, prompts, seeds and scores."""
