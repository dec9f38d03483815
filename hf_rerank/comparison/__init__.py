"""Is a re-ranker worth it on these lists? Trains and measures several in a fair way, and recommends one in words."""
