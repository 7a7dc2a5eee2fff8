"""What checks types while tests run (`--jaxtyping-packages` in pyproject.toml): beartype, to which an int is a float,
too."""
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
