"""Compiled C++ for the CPU: its sources, how they are built, and how they are called."""
