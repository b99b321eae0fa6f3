"""ZeRO: state, gradients and weights in shares (lesson 14)."""
