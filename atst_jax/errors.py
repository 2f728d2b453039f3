"""The one exception that means "the user can mend this": its message is printed alone."""


class UserError(ValueError):
  """A mistake in a config, a path, a file or a flag. The message names the thing, its value and the remedy."""

  exit_code = 2  # of every command it ends
