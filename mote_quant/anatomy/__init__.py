"""What a model is made of: the role of every parameter, its feed-forward blocks, what each rule of a recipe covers."""
