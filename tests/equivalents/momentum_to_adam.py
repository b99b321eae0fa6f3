"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

ROOT = {
    "return theta - lr * m_hat / (v_hat.{sqrt → sqrt_}() + eps), m, v": "nobody else holds v_hat",
}

equivalent = {"adam_step": ROOT, "adamw_step": ROOT}
