"""The pairwise contrastive loss (Eq. 17-19, 23)."""
