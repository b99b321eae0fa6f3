"""Training where the data stays: clients that train at home, and sums that hide what each has found (lesson 25)."""
