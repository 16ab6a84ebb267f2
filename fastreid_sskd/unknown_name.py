"""The error of a name in a config that nothing has."""

__all__ = ["UnknownNameError"]


class UnknownNameError(KeyError):
    """A key of the config, or the name of a data set, that does not exist; says which do. Printed without KeyError's quotes."""

    def __str__(self) -> str:
        return str(self.args[0])
