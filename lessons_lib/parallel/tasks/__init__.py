"""Tasks that are independent of each other (lesson 19)."""
