"""Measurements of quality (`quality`), and of speed and memory (`speed`), against baselines and peers."""
