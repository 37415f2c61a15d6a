"""Gates decide, per sample and step, whether to compute or to skip."""
