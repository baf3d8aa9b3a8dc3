"""Layers of BERT with CMS attention (Eq. 1-8), without gradients."""
