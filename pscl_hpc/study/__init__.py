"""Studies: a grid of methods, data sets, budgets, references and seeds as jobs, and what comes out of it."""
