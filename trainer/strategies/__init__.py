"""The strategies at hand, each registered by its own file."""
