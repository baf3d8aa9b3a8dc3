"""Bias, dropout, residual and LayerNorm."""
