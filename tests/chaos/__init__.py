"""Random kills: a history of commands ends with the same bytes, whatever was killed on the way."""
