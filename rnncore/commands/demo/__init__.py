"""``rnncore demo``: train on handwritten digits, and show gradients vanish, explode and be cured."""
