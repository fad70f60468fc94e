"""Train small language models from scratch on your own text.

Importing this package loads no torch and sets nothing; each public name loads its module when first used.
"""

__version__ = "0.1.0"
