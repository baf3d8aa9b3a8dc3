"""CMS attention (Eq. 1-7)."""
