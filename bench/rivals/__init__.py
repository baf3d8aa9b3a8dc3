"""What a user could run instead of this project, written from the definitions. Nothing else uses it."""
