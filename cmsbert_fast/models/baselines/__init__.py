"""The published systems that CMSBERT-CLR is compared with."""
