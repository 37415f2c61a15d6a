"""Forecasters predict a skipped feature from its last computed values."""
