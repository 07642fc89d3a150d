"""What a model weighs, in three accountings, and the facts of real models to weigh them without weights."""
