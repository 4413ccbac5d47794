"""Reading rows out of files of every accepted kind."""
