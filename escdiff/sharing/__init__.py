"""Sharing concepts and encoders: other programs' layouts, galleries, the Hugging Face hub."""
