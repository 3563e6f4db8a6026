"""Tasks as data: a YAML file says where questions are and how they are asked."""
