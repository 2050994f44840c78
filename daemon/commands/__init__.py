"""The commands of `contrafusion`, one module each: `parser()` and `execute(arguments)`."""
