"""What checks the shapes and types in signatures while the tests run; see conftest.py."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int will do for a float, as in Python itself."""
