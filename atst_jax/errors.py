"""The one exception that means "the user can mend this": its message is printed alone, and the exit code is 2."""


class UserError(ValueError):
  """A mistake in a config, a path, a file or a flag. The message names the thing, its value and the remedy."""
