"""Painting: from prompts and concepts to pictures, in our own call and in anybody's diffusers pipeline."""
