"""What every Headrace service runs on."""

__version__ = "0.1.0"
