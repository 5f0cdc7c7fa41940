"""Two shared cores make a deadline per example a source of chance."""

from hypothesis import settings

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
