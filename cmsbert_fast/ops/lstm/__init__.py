"""The LSTM over packed sequences (Eq. 11)."""
