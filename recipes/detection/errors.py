"""What is wrong with what the user gave."""


class InputError(ValueError):
    """Files or options that cannot be used; the message says what and why, and is all that the user is shown."""


class AnnotationError(InputError):
    """Annotations that cannot be used; the message names the file, the entry and what is wrong with it."""


class OptionError(InputError):
    """Options that do not fit together, or not to a checkpoint that is to go on."""
