"""Reductions: recipes found and run, frames screened, products recorded."""
