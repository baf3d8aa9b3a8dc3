"""A static page of scores, words, gates and features: plain data in, one HTML file out."""
