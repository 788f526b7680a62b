"""Still Life: a procedural world whose every factor is known and can be re-rendered.

Captions name categories and, in five degrees, what is continuous. The value within a degree, and everything about a
nameless thing or texture, can be shown and not described. That gap is what customization is for.
"""
