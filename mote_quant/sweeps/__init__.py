"""Many recipes, budgets and seeds, compared fairly: the sweep."""
