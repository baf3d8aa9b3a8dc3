"""The wall between strangers' files and us."""
