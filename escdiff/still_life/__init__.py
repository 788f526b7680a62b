"""Still Life: a procedural world whose every factor is known and can be re-rendered.

Category words (family, pattern, colour, finish, background) go into captions; the continuous parameters of an
instance do not, so an instance can be shown but not described. That gap is what customization is for.
"""
