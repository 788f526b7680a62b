"""Trainings of models that edit: InstructPix2Pix and AnyDoor."""
