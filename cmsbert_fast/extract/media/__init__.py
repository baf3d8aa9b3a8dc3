"""Pictures and sound of untrusted media files, decoded in a process of its own."""
