"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

SAME_LARGEST_EIGENVALUE = "A Aᵀ has the eigenvalues of Aᵀ A, and zeros beside them"

equivalent = {
    "largest_stable_step": {
        "H = X{.T @ X →  @ X.T} / n": SAME_LARGEST_EIGENVALUE,
    },
    "fit_regression": {
        "alpha = 1 / torch.linalg.eigvalsh(A{.T @ A →  @ A.T} / n)[-1]": SAME_LARGEST_EIGENVALUE,
        "w {= w - → -=} alpha * (A.T @ (A @ w - y) / n)": "nobody else holds w",
    },
}
