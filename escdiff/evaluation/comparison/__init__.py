"""All methods on the same references, prompts, seeds and scores."""
