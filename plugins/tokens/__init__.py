"""Token reduction: self-attention on fewer picture tokens, and every token answered."""
